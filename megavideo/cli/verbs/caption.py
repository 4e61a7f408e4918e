"""`megavideo caption`: captions of clips, written by a model."""

from __future__ import annotations

from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.captions import CaptionRun


def _run(cfg: CaptionRun, texts: Texts) -> Any:
    from megavideo.encoders.captioner.run import caption

    return caption(cfg)


VERB = Verb(
    name="caption",
    summary="let a model describe clips, or rewrite their captions; each clip gets several captions with weights",
    primary="caption",
    schema=CaptionRun,
    run=_run,
    describe=describe_fields,
    examples=(
        "megavideo caption src=data/clips out=data/captions captioner.path=FOLDER",
        "megavideo caption src=data/clips out=data/longer captioner=expand captioner.endpoint.url=http://HOST:8000/v1 "
        "captioner.endpoint.model=NAME captioner.endpoint.key_variable=API_KEY",
        "megavideo ingest src=clips out=data/clips captions=data/captions/captions.jsonl",
    ),
)
