"""Latents from noise: prompts of one size in one pack, guided, by any of the schedulers.

Shape legend: B prompts, N tokens a sample, P patch width, K segments (B, or 2B with guidance).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from megavideo.data.patches import unpatchify
from megavideo.diffusion.randomness import SampleKey
from megavideo.model.dit import DiT
from megavideo.types import Grid, PackedBatch


@dataclass(frozen=True)
class Predictor:
    """A model as the sampler asks it: `predict` gives for a pack the prediction [N, P] of all its tokens.

    Packs are on `device`, in `dtype`, and padded so that `multiple` divides their numbers of video and text tokens.
    """

    predict: Callable[[PackedBatch], torch.Tensor]
    patch_dim: int
    dtype: torch.dtype
    device: torch.device
    multiple: int = 1

    @classmethod
    def of(cls, model: DiT) -> Predictor:
        """A whole model in this process."""
        weight = next(model.parameters())
        return cls(model, model.config.patch_dim, weight.dtype, weight.device)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022): `negative` [L, text_dim] is what to move away from."""

    scale: float
    negative: torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt [L, text_dim] and the randomness of its sample."""

    text: torch.Tensor
    key: SampleKey


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

    `scheduler` has its timesteps set. The model runs in its own precision, the sampler in float32.
    """
    x = torch.stack([prompt.key.normal("sample", (grid.num_tokens, model.patch_dim)) for prompt in prompts])
    x = x.to(model.device) * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1.0)
    conditional = guidance.scale != 0.0
    unconditional = guidance.scale != 1.0
    copies = conditional + unconditional
    texts = [p.text for p in prompts] * conditional + [guidance.negative] * (len(prompts) * unconditional)
    for timestep in scheduler.timesteps:
        batch = _pack(x.repeat(copies, 1, 1), texts, grid, float(timestep), fps, model)
        predicted = model.predict(batch)[: copies * x.shape[0] * x.shape[1]]
        parts = predicted.float().view(copies, *x.shape)
        prediction = torch.lerp(parts[-1], parts[0], guidance.scale) if copies == 2 else parts[0]
        x = scheduler.step(prediction, timestep, x, return_dict=False)[0]
    return [unpatchify(tokens, grid, patch).cpu() for tokens in x]


def _pack(
    x: torch.Tensor, texts: Sequence[torch.Tensor], grid: Grid, timestep: float, fps: float, model: Predictor
) -> PackedBatch:
    """Samples [K, N, P] of one grid as a pack."""
    count, num_tokens, _ = x.shape
    device = model.device
    tokens = _padded(x.flatten(0, 1).to(model.dtype), model.multiple)
    lengths = torch.tensor([0] + [text.shape[0] for text in texts], device=device)
    return PackedBatch(
        tokens=tokens,
        cu_seqlens=torch.arange(count + 1, dtype=torch.int32, device=device) * num_tokens,
        grid=torch.tensor([[grid.t, grid.h, grid.w]] * count, device=device),
        text=_padded(torch.cat(list(texts)).to(device, model.dtype), model.multiple),
        cu_seqlens_text=lengths.cumsum(0).to(torch.int32),
        fps=torch.full((count,), fps, device=device),
        timestep=torch.full((count,), timestep, device=device),
        condition_mask=torch.zeros(tokens.shape[0], dtype=torch.bool, device=device),
        sample_ids=("",) * count,
        visits=(0,) * count,
    )


def _padded(rows: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -rows.shape[0] % multiple
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows
