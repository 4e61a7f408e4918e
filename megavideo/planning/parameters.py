"""The parameters of a model by name and shape, without building it: what every account of memory begins with.

Tests hold names, shapes and order to the model on the meta device, for every preset and every layout of a rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.model import ModelConfig

PLACE_FEATURES = 24  # sines and cosines of three places at four octaves
MODULATIONS = 6  # shift, scale and gate of self-attention and feed-forward


@dataclass(frozen=True)
class Parameter:
    """One parameter of the whole model. `split` is the dim that tensor parallel divides, None where each rank has all.

    `decays` says whether weight decay acts on it, `hidden` whether Muon would train it, `trained` whether it is
    trained at all.
    """

    name: str
    shape: tuple[int, ...]
    split: int | None = None
    hidden: bool = False
    trained: bool = True

    def local_shape(self, tp: int) -> tuple[int, ...]:
        """Shape of the part that one of `tp` ranks holds."""
        return tuple(size // tp if dim == self.split else size for dim, size in enumerate(self.shape))

    def numel(self, tp: int = 1) -> int:
        """Elements that one of `tp` ranks holds."""
        return math.prod(self.local_shape(tp))

    @property
    def decays(self) -> bool:
        """Matrices decay; biases, norms and tables do not."""
        return len(self.shape) >= 2 and "norm" not in self.name and "modulation_table" not in self.name


@lru_cache(maxsize=256)
def model_parameters(
    model: ModelConfig, part: range | None = None, lora: LoraConfig | None = None
) -> tuple[Parameter, ...]:
    """Those of a whole model, or of the pipeline stage that holds the blocks of `part`, in the model's order.

    With adapters everything but them is frozen.
    """
    part = range(model.layers) if part is None else part
    found = list(_layers(model, part))
    if lora is None or lora.rank is None:
        return tuple(parameter for layer in found for parameter in layer.parameters)
    return tuple(parameter for layer in found for parameter in layer.adapted(lora))


def num_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model."""
    return sum(parameter.numel() for parameter in model_parameters(model))


@dataclass(frozen=True)
class _Layer:
    """A module with parameters of its own; `blocks` equal matrices are stacked in the output of a linear one."""

    name: str
    parameters: tuple[Parameter, ...]
    blocks: int = 1
    is_linear: bool = False

    def adapted(self, lora: LoraConfig) -> tuple[Parameter, ...]:
        """Frozen, and an adapter beside it where it is a target."""
        frozen = tuple(
            Parameter(p.name, p.shape, p.split, p.hidden, trained=False) for p in self.parameters
        )  # fmt: skip
        if lora.rank is None or not self.is_linear or not _is_target(self.name, lora.targets):
            return frozen
        weight = self.parameters[0]
        out_dim, in_dim = weight.shape
        down = Parameter(f"{self.name}.lora.A", (self.blocks * lora.rank, in_dim), 1 if weight.split == 1 else None)
        up = Parameter(f"{self.name}.lora.B", (out_dim, lora.rank), 0 if weight.split == 0 else None)
        return (*frozen, down, up)


def _is_target(name: str, targets: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in targets)


def _linear(name: str, in_dim: int, out_dim: int, *, split: int | None = None, blocks: int = 1) -> _Layer:
    """Column layers split their outputs (0) with the bias, row layers their inputs (1) without it."""
    hidden = name.startswith("blocks.")
    weight = Parameter(f"{name}.weight", (out_dim, in_dim), split, hidden)
    bias = Parameter(f"{name}.bias", (out_dim,), 0 if split == 0 else None)
    return _Layer(name, (weight, bias), blocks, is_linear=True)


def _vector(name: str, shape: tuple[int, ...], *, split: int | None = None) -> _Layer:
    return _Layer(name, (Parameter(name, shape, split),))


def _mlp(name: str, in_dim: int, width: int) -> Iterator[_Layer]:
    yield _linear(f"{name}.fc1", in_dim, width)
    yield _linear(f"{name}.fc2", width, width)


def _image_mlp(name: str, in_dim: int, width: int) -> Iterator[_Layer]:
    yield _vector(f"{name}.norm1.weight", (in_dim,))
    yield _vector(f"{name}.norm1.bias", (in_dim,))
    yield _linear(f"{name}.fc1", in_dim, in_dim)
    yield _linear(f"{name}.fc2", in_dim, width)
    yield _vector(f"{name}.norm2.weight", (width,))
    yield _vector(f"{name}.norm2.bias", (width,))


def _layers(model: ModelConfig, part: range) -> Iterator[_Layer]:
    width = model.width
    if part.start == 0:
        yield _linear("embed.patch", model.patch_dim + model.given_dim, width)
        yield from _mlp("embed.time", model.time_dim, width)
        yield from _mlp("embed.text", model.text_dim, width)
        if model.image_dim is not None:
            yield from _image_mlp("embed.image", model.image_dim, width)
        if model.modulation == "adaln":
            yield _linear("embed.modulation", width, MODULATIONS * width)
        if model.fps_conditioning:
            yield from _mlp("embed.fps", model.time_dim, width)
        if model.place_embedding:
            yield _linear("embed.place", PLACE_FEATURES, width)
    for number in part:
        yield from _block(model, f"blocks.{number}")
    if part.stop == model.layers:
        if model.modulation == "adaln":
            yield _vector("head.modulation_table", (2, width))
        else:
            yield _linear("head.modulation", width, 2 * width)
        yield _linear("head.proj", width, model.patch_dim)


def _block(model: ModelConfig, name: str) -> Iterator[_Layer]:
    width = model.width
    if model.modulation == "adaln":
        yield _vector(f"{name}.modulation_table", (MODULATIONS, width))
    else:
        yield _linear(f"{name}.modulation", width, MODULATIONS * width, blocks=MODULATIONS)
    yield _linear(f"{name}.self_attention.qkv", width, 3 * width, split=0, blocks=3)
    yield _linear(f"{name}.self_attention.out", width, width, split=1)
    if model.qk_norm:
        yield _vector(f"{name}.self_attention.q_norm.weight", (width,), split=0)
        yield _vector(f"{name}.self_attention.k_norm.weight", (width,), split=0)
    if model.cross_attn_norm:
        yield _vector(f"{name}.cross_norm.weight", (width,))
        yield _vector(f"{name}.cross_norm.bias", (width,))
    yield _linear(f"{name}.cross_attention.q", width, width, split=0)
    yield _linear(f"{name}.cross_attention.kv", width, 2 * width, split=0, blocks=2)
    yield _linear(f"{name}.cross_attention.out", width, width, split=1)
    if model.qk_norm:
        yield _vector(f"{name}.cross_attention.q_norm.weight", (width,), split=0)
        yield _vector(f"{name}.cross_attention.k_norm.weight", (width,), split=0)
    if model.image_dim is not None:
        yield _linear(f"{name}.cross_attention.image_kv", width, 2 * width, split=0, blocks=2)
        if model.qk_norm:
            yield _vector(f"{name}.cross_attention.image_k_norm.weight", (width,), split=0)
    yield _linear(f"{name}.ffn.up", width, model.ffn, split=0)
    yield _linear(f"{name}.ffn.down", model.ffn, width, split=1)
