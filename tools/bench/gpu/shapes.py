"""Sizes that are measured: those of the real models on a GPU, and small ones for a rehearsal on a CPU.

Shape legend: N tokens of a pack, M text tokens, K segments, P patch width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from megavideo.config.build import build
from megavideo.config.schema.model import ModelConfig
from megavideo.types import Grid, PackedBatch

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "model"


@dataclass(frozen=True)
class Content:
    """Samples of one shape that fill a pack: `count` of `grid` tokens, each with `text_tokens` of text.

    A pack's size is rounded up to `multiple`, by which FP8 products divide, so that most have some padding.
    """

    name: str
    grid: Grid
    count: int
    text_tokens: int
    multiple: int

    @property
    def tokens(self) -> int:
        """Tokens that belong to a sample."""
        return self.count * self.grid.num_tokens

    @property
    def pack_tokens(self) -> int:
        """N."""
        return -(-self.tokens // self.multiple) * self.multiple

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Video and text tokens of each sample, as the FLOPs formula takes them."""
        return [(self.grid.num_tokens, self.text_tokens)] * self.count

    def bounds(self, tokens: int) -> tuple[int, ...]:
        """Where samples of so many tokens begin and end."""
        return tuple(itertools.accumulate([tokens] * self.count, initial=0))

    def pack(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> PackedBatch:
        """A pack of random numbers; tokens [N, P]."""
        bounds, text_bounds = self.bounds(self.grid.num_tokens), self.bounds(self.text_tokens)
        text_rows = -(-text_bounds[-1] // self.multiple) * self.multiple

        def ints(values: tuple[int, ...]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32).to(device)

        with device:
            return PackedBatch(
                tokens=torch.randn(self.pack_tokens, config.patch_dim, dtype=dtype),
                cu_seqlens=ints(bounds),
                grid=torch.tensor([[self.grid.t, self.grid.h, self.grid.w]] * self.count),
                text=torch.randn(text_rows, config.text_dim, dtype=dtype),
                cu_seqlens_text=ints(text_bounds),
                fps=torch.full((self.count,), 16.0),
                timestep=torch.linspace(100, 900, self.count),
                condition_mask=torch.zeros(self.pack_tokens, dtype=torch.bool),
                sample_ids=("",) * self.count,
                visits=(0,) * self.count,
                bounds=bounds,
                text_bounds=text_bounds,
            )


@dataclass(frozen=True)
class Sizes:
    """Everything whose size differs between a run and its rehearsal.

    `models` are those of whole clips, `slice` some blocks of a wide one; `lengths` the clips' tokens, and `pack_counts`
    into how many a pack of that length is cut for attention alone. `products` are (name, rows, in, out) of matrix
    products. `shortest` is how long one timed stretch is at least, in seconds, of which there are `most_rounds`, and
    `slowest_flops` a rate that
    everything here should reach, by which it is judged what there is time for. `compile_seconds` is a guess, held
    until the first compilation has been timed, and so is `engine_seconds` for making the engine. `memory_bytes` is what
    may be used (None: what the device has free).
    """

    base_name: str
    base: ModelConfig
    slice_name: str
    slice: ModelConfig
    clips: tuple[Content, ...]
    images: Content
    attention_width: int
    head_widths: tuple[int, ...]
    lengths: tuple[int, ...]
    pack_counts: tuple[int, ...]
    products: tuple[tuple[str, int, int, int], ...]
    copy_bytes: int
    shortest: float
    most_rounds: int
    slowest_flops: float
    compile_seconds: float
    backend: str
    memory_bytes: int | None
    engine_seconds: float


def model_config(name: str) -> ModelConfig:
    """The model of a file of `configs/model`."""
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    values["eps"] = float(values["eps"])  # 1e-6 is text to YAML 1.1
    return build(ModelConfig, values)


def real_sizes() -> Sizes:
    """For a GPU of the H100's class."""
    base, wide = model_config("wan_1b"), model_config("wan_14b")
    rows = 32_768
    return Sizes(
        base_name="1.3B",
        base=base,
        slice_name="6 blocks of 14B",
        slice=replace(wide, layers=6),
        clips=(
            Content("one clip of 8,192", Grid(8, 32, 32), 1, 512, 128),
            Content("one clip of 32,760", Grid(21, 30, 52), 1, 512, 128),
            Content("one clip of 75,600", Grid(21, 45, 80), 1, 512, 128),
        ),
        images=Content("128 images of 256", Grid(1, 16, 16), 128, 64, 128),
        attention_width=base.width,
        head_widths=(128, 64),
        lengths=(32_760, 8_192, 75_600),
        pack_counts=(1, 4, 128),
        products=(
            ("square 8,192", 8192, 8192, 8192),
            *((f"1.3B {name}", rows, *dims) for name, dims in layer_dims(base).items()),
            *((f"14B {name}", rows, *dims) for name, dims in layer_dims(wide).items()),
        ),
        copy_bytes=2 << 30,
        shortest=5e-3,
        most_rounds=9,
        slowest_flops=120e12,
        compile_seconds=45.0,
        backend="inductor",
        memory_bytes=None,
        engine_seconds=25.0,
    )


def rehearsal_sizes() -> Sizes:
    """For a CPU, in under a minute: the same cases with numbers that have no meaning."""
    config = ModelConfig(layers=2, width=64, ffn=128, heads=2, latent_channels=16, text_dim=32, time_dim=32)
    wide = replace(config, layers=1, ffn=256)
    return Sizes(
        base_name="small",
        base=config,
        slice_name="1 block of wide",
        slice=wide,
        clips=tuple(
            Content(f"one clip of {grid.num_tokens}", grid, 1, 8, 16) for grid in (Grid(2, 5, 6), Grid(4, 10, 12))
        ),
        images=Content("8 images of 15", Grid(1, 3, 5), 8, 4, 16),
        attention_width=64,
        head_widths=(32, 16),
        lengths=(96, 64),
        pack_counts=(1, 4, 8),
        products=(("square 64", 64, 64, 64), *((f"small {k}", 96, *dims) for k, dims in layer_dims(config).items())),
        copy_bytes=1 << 20,
        shortest=1e-4,
        most_rounds=2,
        slowest_flops=1e8,
        compile_seconds=2.0,
        backend="eager",
        memory_bytes=6 << 20,
        engine_seconds=2.0,
    )


def layer_dims(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers that a block's tokens go through."""
    return {
        "qkv": (config.width, 3 * config.width),
        "out": (config.width, config.width),
        "up": (config.width, config.ffn),
        "down": (config.ffn, config.width),
    }
