"""Measuring an autoencoder on the clips that were held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megavideo.autoencoder.corpus import HeldOutClip
from megavideo.autoencoder.features import PerceptualDistance
from megavideo.autoencoder.model import TrainedAutoencoder
from megavideo.autoencoder.quality import Quality, mean_quality, measure
from megavideo.autoencoder.trainer import VaeTrainer


@dataclass(frozen=True)
class ClipResult:
    """A held-out clip: its name, frames and pixels (height, width), and what is left of it."""

    name: str
    frames: int
    pixels: tuple[int, int]
    quality: Quality


def evaluate(
    model: TrainedAutoencoder, clips: Sequence[HeldOutClip], distance: PerceptualDistance
) -> tuple[ClipResult, ...]:
    """Every clip's result, in order, on every rank, which share the work; a collective call."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = next(model.parameters()).device
    mine = []
    for clip in clips[rank::ranks]:
        restored = model.reconstruct(clip.video)
        quality = measure(restored, clip.video, lambda a, b: distance(a.to(device), b.to(device)).cpu())
        mine.append(ClipResult(clip.name, clip.video.shape[1], (clip.video.shape[2], clip.video.shape[3]), quality))
    gathered: list[list[ClipResult]] = [[] for _ in range(ranks)]
    dist.all_gather_object(gathered, mine)
    return tuple(gathered[number % ranks][number // ranks] for number in range(len(clips)))


def mean_of(results: Sequence[ClipResult]) -> Quality:
    """The mean over clips."""
    return mean_quality([result.quality for result in results])


@contextmanager
def averaged_weights(trainer: VaeTrainer) -> Iterator[TrainedAutoencoder]:
    """The model with its moving average in place of its weights, for the duration of a block."""
    parameters = dict(trainer.model.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    trainer.model.eval()
    try:
        with torch.no_grad():
            for name, values in list(trainer.averaged()):
                parameters[name].copy_(values)
        yield trainer.model
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
        trainer.model.train()
