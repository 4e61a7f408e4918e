"""`megavideo train-vae`: alone, under torchrun or under srun."""

from __future__ import annotations

from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.vae import TrainVaeRun


def _run(cfg: TrainVaeRun, texts: Texts) -> Any:
    from megavideo.autoencoder.run import train_vae

    return train_vae(cfg)


VERB = Verb(
    name="train-vae",
    summary="train a causal video autoencoder, or measure a loaded one; the same command resumes a run",
    primary="train_vae",
    schema=TrainVaeRun,
    run=_run,
    describe=describe_fields,
    distributed=True,
    examples=(
        "megavideo train-vae",
        "torchrun --nproc-per-node 2 -m megavideo train-vae vae=clips data.src=data/clips",
        "megavideo train-vae vae=loaded model.path=FOLDER data.src=data/clips train.steps=0",
        "megavideo encode src=data/clips out=data/latents autoencoder=wan autoencoder.path=runs/vae_demo/vae",
    ),
)
