"""Names of adapters' tensors in three dialects, and which of our layers, and which matrix in it, each belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megavideo.config.schema.model import ModelConfig
from megavideo.errors import CheckpointError
from megavideo.interop.names import Dialect, Form, tensor_rules

_SHOWN = 5


@dataclass(frozen=True)
class AdapterDialect:
    """How a family of tools names adapters: `prefix`, then a layer's name, then what the tensor is.

    `network` is whose names of layers they are, `joint` what stands in them for a dot. `alpha` tells where the scale
    comes from: a tensor beside each pair ("required" or "optional"), or the file's metadata.
    """

    title: str
    prefixes: tuple[str, ...]
    network: Dialect
    joint: str
    alpha: str


PEFT = AdapterDialect(
    "PEFT (transformer.LAYER.lora_A.weight)", ("transformer.", "base_model.model."), "diffusers", ".", "metadata"
)
DIALECTS = (
    PEFT,
    AdapterDialect(
        "original Wan (diffusion_model.LAYER.lora_A or lora_down)", ("diffusion_model.",), "wan", ".", "optional"
    ),
    AdapterDialect("kohya (lora_unet_LAYER.lora_down, with alpha)", ("lora_unet_",), "wan", "_", "required"),
)
_KINDS = {
    ".lora_A.weight": "A", ".lora_down.weight": "A", ".lora_B.weight": "B", ".lora_up.weight": "B", ".alpha": "alpha",
}  # fmt: skip


@dataclass(frozen=True)
class LayerNames:
    """One of our layers and those of others that it stacks, in their order; `form` is that of its weight there."""

    ours: str
    theirs: tuple[str, ...]
    form: Form


def layer_names(config: ModelConfig, dialect: AdapterDialect) -> tuple[LayerNames, ...]:
    """All linear layers of the model. Raises CheckpointError for a model that Wan's network cannot express."""
    leaf = ".weight"
    return tuple(
        LayerNames(
            rule.ours.removesuffix(leaf),
            tuple(name.removesuffix(leaf).replace(".", dialect.joint) for name in rule.theirs),
            rule.form,
        )
        for rule in tensor_rules(config, dialect.network)
        if rule.ours.endswith(leaf) and "norm" not in rule.ours
    )


def dialect_of(keys: Iterable[str], source: Path) -> tuple[AdapterDialect, str]:
    """The dialect of a file's keys, and the prefix in use. Raises CheckpointError where there is none or several."""
    keys = tuple(keys)
    for dialect in DIALECTS:
        for prefix in dialect.prefixes:
            if keys and all(key.startswith(prefix) for key in keys):
                return dialect, prefix
    known = "; ".join(dialect.title for dialect in DIALECTS)
    raise CheckpointError(
        f"{source}: no adapters of a known dialect: it begins with {in_short(keys)}. Known are {known}. Remedy: give "
        "the safetensors file of adapters for Wan's transformer, or the folder with pytorch_lora_weights.safetensors"
    )


def sort_keys(
    keys: Iterable[str], dialect: AdapterDialect, prefix: str, layers: Iterable[LayerNames], source: Path
) -> Mapping[tuple[str, str], str]:
    """The key of each (their layer, "A", "B" or "alpha").

    Raises CheckpointError that names what is left over, as layers that the model does not have, and what is missing.
    """
    known = {name for layer in layers for name in layer.theirs}
    found: dict[tuple[str, str], str] = {}
    rest: list[str] = []
    whole: list[str] = []
    for key in keys:
        ending = next((ending for ending in _KINDS if key.endswith(ending)), None)
        layer = "" if ending is None else key.removeprefix(prefix).removesuffix(ending)
        if ending is not None and layer in known:
            found[layer, _KINDS[ending]] = key
        else:
            (whole if key.endswith((".diff", ".diff_b")) else rest).append(key)
    fail = partial(_refuse, source)
    if whole:
        fail(f"{len(whole)} tensors are differences of whole weights, not adapters: {in_short(whole)}")
    if rest:
        fail(f"{len(rest)} of its tensors belong to no layer of this model: {in_short(rest)}")
    pairs = {layer for layer, _ in found}
    needed = ("A", "B", "alpha") if dialect.alpha == "required" else ("A", "B")
    missing = [f"{prefix}{layer} ({kind})" for layer in sorted(pairs) for kind in needed if (layer, kind) not in found]
    if missing:
        fail(f"{len(missing)} tensors are missing: {in_short(missing)}")
    return found


def check_depth(layers: Iterable[str], num_layers: int, source: Path) -> None:
    """Raise CheckpointError for adapters of all of the first blocks and no others: their model has fewer blocks."""
    numbers = {int(found[1]) for layer in layers if (found := re.match(r"blocks\.(\d+)\.", layer))}
    if numbers and numbers == set(range(len(numbers))) and len(numbers) < num_layers:
        _refuse(source, f"adapters of a model with {len(numbers)} blocks, and this one has {num_layers}")


def in_short(names: Iterable[str]) -> str:
    """The first few of them."""
    names = list(names)
    return (", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")) or "nothing"


def _refuse(source: Path, reason: str) -> None:
    raise CheckpointError(f"{source}: {reason}. Remedy: give adapters that were made for a model like base=")
