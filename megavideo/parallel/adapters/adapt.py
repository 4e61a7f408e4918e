"""A model with adapters beside some of its linear layers, and everything else frozen.

The model asks for its layers as ever and learns nothing of it: the layers that it is given are noted as they are made,
since only then is known how each is shared out, and get their branches once the model tells their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.errors import ConfigError
from megavideo.model.dit import DiT
from megavideo.model.layers import Layers, LocalLayers
from megavideo.parallel.adapters.low_rank import BranchForm, attach
from megavideo.parallel.layers.collectives import gather, sum_gradients
from megavideo.parallel.layers.megatron import load_megatron

_MOST_NAMES = 12
Build = Callable[[Layers, range], DiT]


def adapted(build: Build, lora: LoraConfig, tp: dist.ProcessGroup | None = None, *, sp: bool = False) -> Build:
    """`build` itself, or, where `lora` has a rank, one that freezes what it builds and adds adapters to it.

    `tp` is the group that shares heads out, and under `sp` tokens as well; None for whole layers.
    """
    if lora.rank is None:
        return build
    rank, targets, scale = lora.rank, lora.targets, lora.scale

    def build_adapted(layers: Layers, part: range) -> DiT:
        noting = _NotingLayers(layers, tp if tp is not None and tp.size() > 1 else None, sp)
        model = build(cast(Layers, noting), part).requires_grad_(False)
        for name, module in list(model.named_modules()):
            if module in noting.forms and is_target(name, targets):
                attach(module, noting.forms[module], rank, scale)
        return model

    return build_adapted


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether one of the patterns matches the whole name of a layer."""
    return any(fnmatchcase(name, pattern) for pattern in targets)


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The linear layers of a whole model by name, in its order, with their output and input features."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in _whole(config).named_modules()
        if isinstance(module, nn.Linear)
    }


def parameter_names(config: ModelConfig) -> frozenset[str]:
    """The parameters of a whole model without adapters."""
    return frozenset(name for name, _ in _whole(config).named_parameters())


def _whole(config: ModelConfig) -> DiT:
    with torch.device("meta"):
        return DiT(config, LocalLayers())


def check_targets(lora: LoraConfig, config: ModelConfig, stages: Iterable[range] = ()) -> None:
    """Raise ConfigError for a pattern that names no layer, and for stages of a pipeline without any that it trains."""
    if lora.rank is None:
        return
    names = tuple(layer_shapes(config))
    for pattern in lora.targets:
        if not any(is_target(name, (pattern,)) for name in names):
            raise ConfigError(
                "lora.targets", pattern, f"matches none of the model's layers: {_in_short(names)}",
                "take one of these names, with * for what may differ",
            )  # fmt: skip
    for stage in stages:
        prefixes = [f"blocks.{number}." for number in stage]
        prefixes += ["embed."] if stage.start == 0 else []
        prefixes += ["head."] if stage.stop == config.layers else []
        if not any(name.startswith(tuple(prefixes)) and is_target(name, lora.targets) for name in names):
            raise ConfigError(
                "lora.targets", list(lora.targets),
                f"leaves nothing to train on the pipeline stage of blocks {stage.start} to {stage.stop - 1}",
                "name a layer of each stage, or take a layout with fewer stages",
            )  # fmt: skip


def _in_short(names: Sequence[str]) -> str:
    """The names with one block for all, which differ in nothing but their number."""
    short = list(dict.fromkeys(f"blocks.*.{name.split('.', 2)[2]}" if name.startswith("blocks.") else name
                               for name in names))  # fmt: skip
    return ", ".join(short[:_MOST_NAMES]) + (", ..." if len(short) > _MOST_NAMES else "")


class _NotingLayers:
    """The builders of `layers`, which note of each linear layer the form that a branch beside it has to have."""

    def __init__(self, layers: Layers, tp: dist.ProcessGroup | None, sp: bool) -> None:
        self.forms: dict[nn.Module, BranchForm] = {}
        self._layers = layers
        self._tp = tp
        self._sp = sp

    def __getattr__(self, name: str) -> Any:
        """Whatever builds no linear layer is that of `layers`."""
        return getattr(self._layers, name)

    def column(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """A x is formed of own tokens, r numbers each, and gathered, so that A sees a share of the tokens under sp.

        Without sp every rank has all tokens and forms the same A x, whose gradient by its heads alone is summed.
        """
        layer = self._layers.column(in_dim, out_dim, blocks=blocks)
        if self._tp is None:
            return self._note(layer, BranchForm(in_dim, out_dim, blocks))
        between, seen_in_part = (gather, "A") if self._sp else (sum_gradients, "")
        return self._note(
            layer, self._shared(in_dim, out_dim // self._tp.size(), blocks, "B", seen_in_part, between)
        )  # fmt: skip

    def column_of_whole(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """The input's gradient is summed by `over_heads`, so that of A x stays that of this rank's heads, as A's."""
        layer = self._layers.column_of_whole(in_dim, out_dim, blocks=blocks)
        if self._tp is None:
            return self._note(layer, BranchForm(in_dim, out_dim, blocks))
        return self._note(layer, self._shared(in_dim, out_dim // self._tp.size(), blocks, "B", "A", None))

    def row(self, in_dim: int, out_dim: int) -> nn.Module:
        """A x is summed over the shards of the input; under sp B sees own tokens only."""
        layer = self._layers.row(in_dim, out_dim)
        if self._tp is None:
            return self._note(layer, BranchForm(in_dim, out_dim))
        megatron = load_megatron()
        between = (
            megatron.reduce_scatter_to_sequence_parallel_region
            if self._sp
            else megatron.reduce_from_tensor_model_parallel_region
        )
        partial_in = "B" if self._sp else ""
        return self._note(layer, self._shared(in_dim // self._tp.size(), out_dim, 1, "A", partial_in, between))

    def replicated(self, in_dim: int, out_dim: int) -> nn.Module:
        """Every rank computes the same, and `over_tokens` or `over_heads` behind it give the whole gradient."""
        return self._note(self._layers.replicated(in_dim, out_dim), BranchForm(in_dim, out_dim))

    def per_token(self, in_dim: int, out_dim: int) -> nn.Module:
        """Both matrices see own tokens only."""
        form = BranchForm(in_dim, out_dim, partial="AB" if self._sp else "", tp=self._tp)
        return self._note(self._layers.per_token(in_dim, out_dim), form)

    def _shared(
        self, in_dim: int, out_dim: int, blocks: int, shards: str, seen_in_part: str, between: Any
    ) -> BranchForm:
        meet = None if between is None else partial(between, group=self._tp)
        return BranchForm(in_dim, out_dim, blocks, shards, seen_in_part, self._tp, meet)

    def _note(self, layer: nn.Module, form: BranchForm) -> nn.Module:
        self.forms[layer] = form
        return layer
