"""Noise by content through the code that noises packs: the same of a sample in whatever pack it is, and off at zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.data.plan.packing import PackLimits
from megavideo.data.stream.batch import assemble
from megavideo.data.stream.shards import LatentSample
from megavideo.diffusion.content import content_shift, latent_gradient
from megavideo.diffusion.objective import build_objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import apply_shift
from megavideo.train.packs.noising import noise_pack
from megavideo.types import Grid, PackSegment

PATCH = (1, 2, 2)
GRIDS = (Grid(3, 2, 2), Grid(1, 3, 2), Grid(2, 2, 4), Grid(1, 1, 1))
SEGMENTS = [PackSegment(i, f"s{i}", 1, GRIDS[i % 4], 2) for i in range(12)]
# from hardly anything to white noise
SCALES = [0.05 * 1.5**i for i in range(12)]


def levels(config: DiffusionConfig, packs: Sequence[Sequence[int]], spoiled: int | None = None) -> dict[str, float]:
    """Noise level of each sample, packed as told by number."""
    found = {}
    for numbers in packs:
        segments = [SEGMENTS[i] for i in numbers]
        samples = [sample(segment, SCALES[segment.index], segment.index == spoiled) for segment in segments]
        pack = assemble(segments, samples, PATCH, PackLimits(200, 40, len(segments) + 1))
        batch = noise_pack(pack, segments, config, build_objective(config), 0)
        found |= {s.sample_id: float(batch.pack.timestep[i]) / 1000 for i, s in enumerate(segments)}
    return found


def sample(segment: PackSegment, scale: float, spoiled: bool) -> LatentSample:
    grid = segment.grid
    latent = scale * SampleKey(9, segment.sample_id, 0).normal("latent", (4, grid.t, 2 * grid.h, 2 * grid.w))
    if spoiled:
        latent[0, 0, 0, 0] = math.nan
    return LatentSample(latent, torch.zeros(2, 8), 8.0)


@pytest.mark.parametrize("shift", [None, 3.0])
def test_a_sample_has_its_level_in_every_pack(shift: float | None) -> None:
    config = DiffusionConfig(shift=shift, shift_by_content=1.0)
    one = levels(config, [range(12)])
    assert one == levels(config, [range(6), range(6, 12)]) == levels(config, [[i] for i in reversed(range(12))])
    plain = levels(DiffusionConfig(shift=shift), [range(12)])
    assert plain == levels(DiffusionConfig(shift=shift, shift_by_content=0.0), [range(12)])
    for i, segment in enumerate(SEGMENTS):
        tokens = assemble([segment], [sample(segment, SCALES[i], False)], PATCH, PackLimits(200, 40, 2)).tokens
        factor = content_shift(1.0, latent_gradient(tokens[: segment.grid.num_tokens], segment.grid))
        assert one[segment.sample_id] == pytest.approx(apply_shift(plain[segment.sample_id], factor), rel=1e-5)
    assert one["s0"] < plain["s0"] and one["s10"] > plain["s10"]  # calm and busy
    assert one["s3"] == plain["s3"]  # a single token has no neighbour


def test_a_spoiled_sample_still_has_a_level() -> None:
    """Its step is skipped for the loss, which must come that far."""
    config = DiffusionConfig(shift_by_content=1.0)
    found, plain = (levels(given, [range(12)], spoiled=2) for given in (config, DiffusionConfig()))
    assert found["s2"] == plain["s2"]
