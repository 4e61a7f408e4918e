"""The packs of a parity run, through the production code that makes, masks and noises them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from megavideo.data.dataset.given_latents import GIVEN_COLUMNS
from megavideo.data.plan.packing import PackLimits
from megavideo.data.stream.batch import assemble
from megavideo.data.stream.shards import LatentSample
from megavideo.diffusion.objective import build_objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.parity.spec import ParitySpec
from megavideo.train.loss.term_labels import Windows, choose_windows
from megavideo.train.packs.feed import StepInput
from megavideo.train.packs.noising import TrainBatch, noise_pack, num_loss_tokens, tell_given
from megavideo.types import Grid, PackSegment

_TEXT_TOKENS = 5  # of the longest caption; captions of a pack differ in length
_IMAGE_ROWS = 7  # odd, so that ranks of cp share them out unevenly


def step_input(spec: ParitySpec, step: int, dp_rank: int, dp: int) -> StepInput:
    """One data-parallel rank's share of a step."""
    packs = _packs(spec, step)
    share = spec.packs_per_step // dp
    mine = packs[dp_rank * share : (dp_rank + 1) * share]
    windows = step_windows(spec, step)
    return StepInput(
        step=step,
        batches=tuple(_batch(spec, segments, windows) for segments in mine),
        loss_tokens=num_loss_tokens(packs, spec.diffusion, spec.seed, spec.model),
        tokens=sum(s.grid.num_tokens for pack in packs for s in pack),
        segment_tokens=tuple((s.grid.num_tokens, s.text_tokens) for pack in packs for s in pack),
    )


def step_windows(spec: ParitySpec, step: int) -> Windows:
    """What the perceptual term decodes of a step."""
    packs = _packs(spec, step)
    loss_tokens = num_loss_tokens(packs, spec.diffusion, spec.seed, spec.model)
    return choose_windows(packs, spec.diffusion, spec.model.patch[0], spec.seed, loss_tokens)


def _packs(spec: ParitySpec, step: int) -> list[tuple[PackSegment, ...]]:
    return [_segments(spec, step, number) for number in range(spec.packs_per_step)]


def _segments(spec: ParitySpec, step: int, pack: int) -> tuple[PackSegment, ...]:
    grids = spec.grids(pack)
    return tuple(
        PackSegment(i, f"pack{pack}/{i}", step, grid, 1 + (pack + i) % _TEXT_TOKENS) for i, grid in enumerate(grids)
    )


def _batch(spec: ParitySpec, segments: Sequence[PackSegment], windows: Windows) -> TrainBatch:
    most = max(len(spec.grids(pack)) for pack in range(spec.packs_per_step)) + 1  # one segment stays unused
    limits = PackLimits(spec.tokens, most * _TEXT_TOKENS, most)
    samples = [_sample(spec, segment) for segment in segments]
    pack = assemble(segments, samples, spec.model.patch, limits)
    objective = build_objective(spec.diffusion)
    keys = [SampleKey(spec.seed, segment.sample_id, segment.visit) for segment in segments]
    pack = tell_given(pack, segments, samples, keys, spec.diffusion, spec.model)
    return noise_pack(pack, segments, spec.diffusion, objective, spec.seed, windows)


def _sample(spec: ParitySpec, segment: PackSegment) -> LatentSample:
    key = SampleKey(spec.seed, segment.sample_id, segment.visit)
    model = spec.model
    size = (model.latent_channels, *_latent(segment.grid, model.patch))
    latent = key.normal("parity/latent", size)
    given: dict[str, torch.Tensor] = {
        task: key.normal(f"parity/{task}", size) for task in GIVEN_COLUMNS if model.given_channels
    }
    text = key.normal("parity/text", (segment.text_tokens, model.text_dim))
    image = None if model.image_dim is None else key.normal("parity/image", (_IMAGE_ROWS, model.image_dim))
    return LatentSample(latent, text, fps=8.0 + 8.0 * (segment.index % 3), given=given, image=image)


def _latent(grid: Grid, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    return grid.t * patch[0], grid.h * patch[1], grid.w * patch[2]


def start_value(spec: ParitySpec, name: str, shape: torch.Size) -> torch.Tensor:
    """Start weights without zeros, so that from the first step on every parameter has a gradient."""
    from megavideo.model.init import initial_value, parameter_generator

    noise = torch.randn(shape, generator=parameter_generator(spec.seed, f"parity/{name}"))
    return initial_value(name, shape, spec.seed) + 0.1 * noise / max(1.0, shape[-1] ** 0.5)


@torch.no_grad()
def fill_whole(spec: ParitySpec, model: nn.Module) -> None:
    """Fill a model whose parameters are whole, without the code that makes the parameters of a layout."""
    for name, parameter in model.named_parameters():
        parameter.copy_(start_value(spec, name, parameter.shape))
