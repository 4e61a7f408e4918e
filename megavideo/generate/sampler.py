"""Latents from noise: prompts of one size in one pack, guided, by any of the schedulers.

Shape legend: B prompts, N tokens a sample, P patch width, K segments (B, or 2B with guidance).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from megavideo.config.schema.model import ModelConfig
from megavideo.data.patches import unpatchify
from megavideo.diffusion.objective import NUM_TIMESTEPS
from megavideo.diffusion.randomness import SampleKey
from megavideo.model.dit import DiT
from megavideo.types import Grid, PackedBatch


@dataclass(frozen=True)
class Predictor:
    """A model as the sampler asks it: `predict` gives for a pack the prediction [N, P] of all its tokens.

    Packs are on `device`, in `dtype`, and padded so that `multiple` divides their numbers of video and text tokens.
    `low`, where it is there, is the expert for noise levels below `boundary`.
    """

    predict: Callable[[PackedBatch], torch.Tensor]
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    multiple: int = 1
    low: Callable[[PackedBatch], torch.Tensor] | None = None
    boundary: float = 0.0

    @classmethod
    def of(cls, model: DiT, low: DiT | None = None, boundary: float = 0.0) -> Predictor:
        """A whole model in this process, or two experts."""
        weight = next(model.parameters())
        return cls(model, model.config, weight.dtype, weight.device, low=low, boundary=boundary)

    def at(self, timestep: float) -> Callable[[PackedBatch], torch.Tensor]:
        """What predicts at a timestep in 0..1000; that of the boundary itself is the high expert's."""
        if self.low is None or timestep >= self.boundary * NUM_TIMESTEPS:
            return self.predict
        return self.low


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022): `negative` [L, text_dim] is what to move away from."""

    scale: float
    negative: torch.Tensor


@dataclass(frozen=True)
class GivenTokens:
    """Clean tokens [N, P], float32, of which a sample keeps those that are `given` [N], bool."""

    tokens: torch.Tensor
    given: torch.Tensor


@dataclass(frozen=True)
class GivenChannels:
    """What a model with given channels is told: its further input channels [N, G], float32.

    `image` [I, E], float32, is the embedding of the first frame, for models with `model.image_dim`.
    """

    channels: torch.Tensor
    image: torch.Tensor | None = None


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt [L, text_dim], the randomness of its sample, and what the sample is given besides."""

    text: torch.Tensor
    key: SampleKey
    given: GivenTokens | GivenChannels | None = None


@torch.no_grad()
def sample_latents(
    model: Predictor,
    scheduler: Any,
    prompts: Sequence[Prompt],
    guidance: Guidance,
    grid: Grid,
    patch: tuple[int, int, int],
    fps: float,
) -> list[torch.Tensor]:
    """Latents [C, T, H, W], float32, one a prompt; a prompt's result does not depend on the others in the batch.

    `scheduler` has its timesteps set. The model runs in its own precision, the sampler in float32. Given tokens are
    clean at every step, with and without the prompt, and come out as they were; a model with given channels is told
    there, with and without the prompt, and makes all tokens.
    """
    x = torch.stack([prompt.key.normal("sample", (grid.num_tokens, model.config.patch_dim)) for prompt in prompts])
    x = x.to(model.device) * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1.0)
    clean, given = _given(prompts, x)
    channels = _channels(prompts, x, model.config.given_dim) if model.config.given_channels else None
    conditional = guidance.scale != 0.0
    unconditional = guidance.scale != 1.0
    copies = conditional + unconditional
    texts = [p.text for p in prompts] * conditional + [guidance.negative] * (len(prompts) * unconditional)
    images = _images(prompts, copies, model)
    x = torch.where(given[..., None], clean, x)
    for timestep in scheduler.timesteps:
        batch = _pack(x.repeat(copies, 1, 1), given.repeat(copies, 1), texts, grid, float(timestep), fps, model)
        if channels is not None:
            rows = channels.repeat(copies, 1, 1).flatten(0, 1).to(model.dtype)
            batch = replace(batch, given=_padded(rows, model.multiple), image=images)
        predicted = model.at(float(timestep))(batch)[: copies * x.shape[0] * x.shape[1]]
        parts = predicted.float().view(copies, *x.shape)
        prediction = torch.lerp(parts[-1], parts[0], guidance.scale) if copies == 2 else parts[0]
        x = torch.where(given[..., None], clean, scheduler.step(prediction, timestep, x, return_dict=False)[0])
    return [unpatchify(tokens, grid, patch).cpu() for tokens in x]


def _given(prompts: Sequence[Prompt], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean tokens [B, N, P] and which of them are given [B, N], like the samples x."""
    clean, given = torch.zeros_like(x), torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    for i, prompt in enumerate(prompts):
        if isinstance(prompt.given, GivenTokens):
            clean[i], given[i] = prompt.given.tokens, prompt.given.given
    return clean, given


def _channels(prompts: Sequence[Prompt], x: torch.Tensor, width: int) -> torch.Tensor:
    """Further input channels [B, N, G] beside the samples x; zero where nothing is given."""
    channels = x.new_zeros(*x.shape[:2], width)
    for i, prompt in enumerate(prompts):
        if isinstance(prompt.given, GivenChannels):
            channels[i] = prompt.given.channels
    return channels


def _images(prompts: Sequence[Prompt], copies: int, model: Predictor) -> torch.Tensor | None:
    """Embeddings [copies * B, I, E] of what the prompts are given, zero where nothing is; None for models without."""
    width = model.config.image_dim
    if width is None:
        return None
    told = [p.given.image if isinstance(p.given, GivenChannels) else None for p in prompts]
    rows = next((len(image) for image in told if image is not None), 1)
    images = torch.stack([torch.zeros(rows, width) if image is None else image for image in told])
    return images.repeat(copies, 1, 1).to(model.device, model.dtype)


def _pack(
    x: torch.Tensor,
    given: torch.Tensor,
    texts: Sequence[torch.Tensor],
    grid: Grid,
    timestep: float,
    fps: float,
    model: Predictor,
) -> PackedBatch:
    """Samples [K, N, P] of one grid, with their given tokens [K, N], as a pack."""
    count, num_tokens, _ = x.shape
    device = model.device
    tokens = _padded(x.flatten(0, 1).to(model.dtype), model.multiple)
    bounds = tuple(range(0, (count + 1) * num_tokens, num_tokens))
    text_bounds = tuple(itertools.accumulate((text.shape[0] for text in texts), initial=0))
    return PackedBatch(
        tokens=tokens,
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=device),
        grid=torch.tensor([[grid.t, grid.h, grid.w]] * count, device=device),
        text=_padded(torch.cat(list(texts)).to(device, model.dtype), model.multiple),
        cu_seqlens_text=torch.tensor(text_bounds, dtype=torch.int32, device=device),
        fps=torch.full((count,), fps, device=device),
        timestep=torch.full((count,), timestep, device=device),
        condition_mask=_padded(given.flatten(), model.multiple),
        sample_ids=("",) * count,
        visits=(0,) * count,
        bounds=bounds,
        text_bounds=text_bounds,
    )


def _padded(rows: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -rows.shape[0] % multiple
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)) if missing else rows
