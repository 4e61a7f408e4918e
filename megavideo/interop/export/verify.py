"""What was exported, loaded strictly into diffusers' model, beside the model of the checkpoint: one forward pass each.

Shape legend: C latent channels, T, H, W latent size, L text tokens, N video tokens, P patch width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from megavideo.border.tensor_file import read_tensors
from megavideo.config.schema.model import ModelConfig
from megavideo.data.patches import patchify, token_grid
from megavideo.interop.export.source import ExportSource
from megavideo.interop.names import Dialect
from megavideo.interop.quantised_files import dequantised, fill
from megavideo.interop.weights import wan_config
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.parallel.materialise import materialise
from megavideo.types import Grid, PackedBatch

LIMIT = 1e-5
_TOKENS = (3, 4, 6)  # of the sample, over time, height and width
_TEXT_TOKENS, _PADDED_TEXT_TOKENS = 12, 512
_IMAGE_ROWS = 9
_TIMESTEP = 617.0

# from the name and value of a parameter of ours to the value that was written, in float32
Rounded = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Verified:
    """The norm of the difference over the norm of the output, and above which it is a fault; what did not load."""

    relative_error: float | None
    limit: float
    fault: str | None

    @property
    def passed(self) -> bool:
        """Whether it loaded and gave the same numbers."""
        return self.fault is None and self.relative_error is not None and self.relative_error <= self.limit


@dataclass(frozen=True)
class Sample:
    """A noisy latent [C, T, H, W] with a text [L, text_dim]; if any, further input channels [G, T, H, W] and an image's
    embedding [I, E].
    """

    latent: torch.Tensor
    text: torch.Tensor
    timestep: float
    given: torch.Tensor | None = None
    image: torch.Tensor | None = None


@torch.no_grad()
def verify(files: Sequence[Path], dialect: Dialect, source: ExportSource, rounded: Rounded) -> Verified:
    """Compare in fp32, ours with weights `rounded` as they were written; one model in memory at a time."""
    config = source.config.model
    sample = sample_for(config)
    try:
        theirs = load_theirs(files, dialect, config)
    except RuntimeError as error:
        return Verified(None, LIMIT, f"diffusers does not load it: {error}")
    expected = their_output(theirs, sample)
    del theirs
    with torch.device("meta"):
        ours = DiT(config, LocalLayers())
    materialise(ours, lambda name, _: rounded(name, source.value(name)))
    actual = our_output(ours, sample)
    return Verified(float((actual - expected).norm() / expected.norm()), LIMIT, None)


def sample_for(config: ModelConfig) -> Sample:
    """A fixed sample of three latent frames."""
    generator = torch.Generator().manual_seed(0)
    size = [tokens * side for tokens, side in zip(_TOKENS, config.patch, strict=True)]
    latent = torch.randn(config.latent_channels, *size, generator=generator)
    # beside an image diffusers takes the last 512 rows for the text, whatever their number
    text_tokens = _TEXT_TOKENS if config.image_dim is None else _PADDED_TEXT_TOKENS
    text = torch.randn(text_tokens, config.text_dim, generator=generator)
    given = torch.randn(config.given_channels, *size, generator=generator) if config.given_channels else None
    image = None if config.image_dim is None else torch.randn(_IMAGE_ROWS, config.image_dim, generator=generator)
    return Sample(latent, text, _TIMESTEP, given, image)


def load_theirs(files: Sequence[Path], dialect: Dialect, config: ModelConfig) -> Any:
    """The tensors of `files`, in fp32, in diffusers' model; RuntimeError where any is missing, unknown or misshapen."""
    tensors = {name: tensor.float() for path in files for name, tensor in dequantised(read_tensors(path)).items()}
    if dialect == "wan":
        tensors = convert_wan_transformer_to_diffusers(tensors)
    with torch.device("meta"):
        model: Any = WanTransformer3DModel(**wan_config(config))  # its base is untyped
    return fill(model, tensors)


def their_output(model: Any, sample: Sample) -> torch.Tensor:
    """Tokens [N, P]."""
    timestep = torch.tensor([sample.timestep])
    latent = sample.latent if sample.given is None else torch.cat([sample.latent, sample.given])
    image = None if sample.image is None else sample.image[None]
    output = model(latent[None], timestep, sample.text[None], image, return_dict=False)[0]
    return patchify(output[0], tuple(model.config.patch_size))


def our_output(model: DiT, sample: Sample) -> torch.Tensor:
    """Tokens [N, P]."""
    _, t, h, w = sample.latent.shape
    grid = token_grid(Grid(t, h, w), model.config.patch)
    bounds, text_bounds = (0, grid.num_tokens), (0, sample.text.shape[0])
    batch = PackedBatch(
        tokens=patchify(sample.latent, model.config.patch),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        grid=torch.tensor([[grid.t, grid.h, grid.w]]),
        text=sample.text,
        cu_seqlens_text=torch.tensor(text_bounds, dtype=torch.int32),
        fps=torch.zeros(1),
        timestep=torch.tensor([sample.timestep]),
        condition_mask=torch.zeros(grid.num_tokens, dtype=torch.bool),
        sample_ids=("",),
        visits=(0,),
        bounds=bounds,
        text_bounds=text_bounds,
        given=None if sample.given is None else patchify(sample.given, model.config.patch),
        image=None if sample.image is None else sample.image[None],
    )
    return model(batch)
