"""`megavideo ingest`: files or folders of captioned video into a list of clips."""

from __future__ import annotations

from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.prepare import IngestRun


def _run(cfg: IngestRun, texts: Texts) -> Any:
    from megavideo.data.ingest import ingest

    return ingest(cfg)


VERB = Verb(
    name="ingest",
    summary="read captioned video and images, report what cannot be used, and list the rest",
    primary="ingest",
    schema=IngestRun,
    run=_run,
    describe=describe_fields,
    examples=(
        "megavideo ingest src=clips out=data/clips",
        "megavideo ingest src=clips out=data/clips captions=captions.jsonl",
    ),
)
