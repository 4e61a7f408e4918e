"""Adapters as files of other tools: written in PEFT's names, read in three dialects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megavideo.border.json_text import parse_json, read_json
from megavideo.border.refused import Refused
from megavideo.border.tensor_file import open_tensors, reading_tensors
from megavideo.config.schema.model import ModelConfig
from megavideo.errors import CheckpointError
from megavideo.interop.adapter_names import (
    PEFT,
    AdapterDialect,
    LayerNames,
    check_depth,
    dialect_of,
    in_short,
    layer_names,
    sort_keys,
)
from megavideo.observe.whole_file import replacing
from megavideo.parallel.adapters.adapt import layer_shapes

# the file that diffusers' `load_lora_weights` looks for in a folder, and its key for PEFT's settings in the metadata
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
_SETTINGS_KEY = "lora_adapter_metadata"
# what PEFT itself writes: weights, and beside them settings
_PEFT_FILE, _PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = PEFT.prefixes[0]


@dataclass(frozen=True)
class Adapter:
    """Matrices A [k r, I] and B [O, r] of our layers by name, float32; each product counts alpha / rank."""

    rank: int
    alpha: float
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def write_adapter(folder: Path, adapter: Adapter, config: ModelConfig) -> Path:
    """Write the file that `load_lora_weights` of diffusers' Wan pipelines takes, whole or not at all; its place.

    A fused layer becomes one pair for each matrix in it. Raises CheckpointError for a model that Wan's network cannot
    express, and for the patch embedding, which is a convolution there; OSError where the disk refuses.
    """
    tensors: dict[str, torch.Tensor] = {}
    modules = []
    for layer in layer_names(config, PEFT):
        if layer.ours not in adapter.matrices:
            continue
        if layer.form == "patch":
            raise CheckpointError(
                f"{layer.ours}: is a convolution in diffusers, and its adapter cannot be written. Remedy: train "
                "without it in lora.targets, or merge the adapters"
            )
        parts = (matrix.chunk(len(layer.theirs)) for matrix in adapter.matrices[layer.ours])
        for name, down, up in zip(layer.theirs, *parts, strict=True):
            modules.append(name)
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = down.contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = up.contiguous()
    settings = {
        "r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": modules,
        "rank_pattern": {}, "alpha_pattern": {},  # diffusers asks for them
    }  # fmt: skip
    packed = json.dumps({f"{_PREFIX}{key}": value for key, value in settings.items()})
    path = folder / WEIGHTS_FILE
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"format": "pt", _SETTINGS_KEY: packed})
    return path


def read_adapter(place: Path, config: ModelConfig) -> Adapter:
    """Adapters for a model, from a file, or a folder as diffusers or PEFT write it.

    A part of a fused layer that has no adapter gets one of zeros, which stays that. Raises CheckpointError where the
    file cannot be read, holds anything else, or was made for a model of another depth or width.
    """
    path = place
    if place.is_dir():
        path = place / (_PEFT_FILE if (place / _PEFT_FILE).exists() else WEIGHTS_FILE)
    try:
        with open_tensors(path) as file, reading_tensors():
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (Refused, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remedy: give a safetensors file") from error
    dialect, prefix = dialect_of(tensors, path)
    layers = layer_names(config, dialect)
    keys = sort_keys(tensors, dialect, prefix, layers, path)
    pairs = {name: (tensors[keys[name, "A"]], tensors[keys[name, "B"]]) for name, kind in keys if kind == "A"}
    ranks = {down.shape[0] for down, _ in pairs.values() if down.ndim == 2}
    if len(ranks) != 1:
        raise CheckpointError(f"{path}: has ranks {sorted(ranks)}. Remedy: give adapters of one rank")
    rank = ranks.pop()
    alphas = _alphas(dialect, metadata, [tensors[key] for (_, kind), key in keys.items() if kind == "alpha"], path)
    if len(alphas) > 1:
        raise CheckpointError(f"{path}: has alphas {sorted(alphas)}. Remedy: give adapters of one alpha")
    matrices = _stacked(layers, pairs, rank, config, path)
    check_depth(matrices, config.layers, path)
    return Adapter(rank, alphas.pop() if alphas else float(rank), matrices)


def _alphas(dialect: AdapterDialect, metadata: Mapping[str, str], beside: list[torch.Tensor], path: Path) -> set[float]:
    """The scales that a file tells; none where alpha is the rank."""
    if dialect.alpha != "metadata":
        return {float(alpha) for alpha in beside}
    try:
        beside_it = path.parent / _PEFT_SETTINGS
        settings: dict[str, Any] = {}
        if _SETTINGS_KEY in metadata:
            packed = parse_json(metadata[_SETTINGS_KEY], dict[str, Any])
            settings = {name.removeprefix(_PREFIX): value for name, value in packed.items()}
        elif beside_it.exists():
            settings = read_json(beside_it, dict[str, Any])
        if settings.get("alpha_pattern") or settings.get("use_dora") or settings.get("use_rslora"):
            raise Refused("alpha_pattern, use_dora and use_rslora scale adapters in other ways than alpha / rank")
        alpha = settings.get("lora_alpha")
        return set() if alpha is None else {float(alpha)}
    except (Refused, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its settings cannot be used ({error}). Remedy: give other adapters") from error


def _stacked(
    layers: tuple[LayerNames, ...],
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    rank: int,
    config: ModelConfig,
    path: Path,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    shapes = layer_shapes(config)
    matrices, other = {}, []
    for layer in layers:
        if not pairs.keys() & set(layer.theirs):
            continue
        out_dim, in_dim = shapes[layer.ours]
        wanted = ((rank, in_dim), (out_dim // len(layer.theirs), rank))
        nothing = (torch.zeros(wanted[0]), torch.zeros(wanted[1]))
        found = [pairs.get(name, nothing) for name in layer.theirs]
        other += [layer.ours for pair in found if tuple(tuple(matrix.shape) for matrix in pair) != wanted]
        if not other:
            matrices[layer.ours] = (torch.cat([down for down, _ in found]), torch.cat([up for _, up in found]))
    if other:
        raise CheckpointError(
            f"{path}: made for a model of another width: the adapters of {in_short(other)} do not fit. Remedy: give "
            "adapters that were made for a model like base="
        )
    return matrices
