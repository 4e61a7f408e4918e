"""A run small enough for a test."""

from __future__ import annotations

from pathlib import Path

from megavideo.config.load import load
from megavideo.config.schema.vae import TrainVaeRun

TINY = [
    "model.width=8", "model.latent_channels=4", "data.size=32", "data.frames=5", "data.clips=2", "data.images=2",
    "data.held_out=2", "optim.warmup_steps=1", "train.steps=4", "train.evaluate_every=4", "train.checkpoint_every=2",
]  # fmt: skip
ADVERSARY = ["loss.adversarial=0.02", "loss.adversarial_start=1", "loss.disc_width=8", "loss.disc_lr=1e-4"]


def tiny_words(output: Path, *words: str) -> list[str]:
    """Overrides of a tiny run; later words take the place of earlier ones of the same key."""
    together = {word.split("=")[0]: word for word in [f"output={output}", "name=run", *TINY, *words]}
    return list(together.values())


def tiny_run(output: Path, *words: str) -> TrainVaeRun:
    """Settings of a tiny run."""
    return load(TrainVaeRun, "train_vae", tiny_words(output, *words))
