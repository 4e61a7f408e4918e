"""`megavideo train`: alone, under torchrun or under srun."""

from __future__ import annotations

from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.train import TrainRun


def _run(cfg: TrainRun, texts: Texts) -> Any:
    from megavideo.train.run import train

    return train(cfg)


VERB = Verb(
    name="train",
    summary="train a video diffusion transformer; the same command resumes a run",
    primary="train",
    schema=TrainRun,
    run=_run,
    describe=describe_fields,
    distributed=True,
    examples=(
        "megavideo train run=small data.uri=data/latents",
        "torchrun --nproc-per-node 2 -m megavideo train run=small data.uri=data/latents layout=dp2-zero1",
        "srun megavideo train run=wan_1b data.uri=s3://bucket/latents data.cache=shards",
    ),
)
