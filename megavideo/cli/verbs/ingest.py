"""`megavideo ingest`: files or folders of captioned video into a list of measured clips without duplicates."""

from __future__ import annotations

from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.prepare import IngestRun


def _run(cfg: IngestRun, texts: Texts) -> Any:
    from megavideo.config.rules.scores import models_on
    from megavideo.data.ingest import ingest

    if not models_on(cfg.scores):
        return ingest(cfg)
    from megavideo.encoders.scores.build import build_measures  # brings torch

    return ingest(cfg, build_measures(cfg.scores))


VERB = Verb(
    name="ingest",
    summary="cut captioned video into clips, measure and filter them, and list those that can be trained on",
    primary="ingest",
    schema=IngestRun,
    run=_run,
    describe=describe_fields,
    examples=(
        "megavideo ingest src=clips out=data/clips",
        "megavideo ingest src=clips out=data/clips captions=captions.jsonl workers=16",
        "megavideo ingest src=clips out=data/clips filters=strict filters.min_motion=0.5",
        "megavideo ingest src=s3://bucket/clips out=data/clips store.cache=/scratch",
        "megavideo ingest src=clips out=data/clips scores.clip.folder=FOLDER scores.clip.minimum=0.2",
        "megavideo ingest src=clips out=data/clips shard=0/4   # or as a SLURM job array, without shard=",
    ),
)
