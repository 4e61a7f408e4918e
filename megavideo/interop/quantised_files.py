"""Exports with quantised matrices read back: each matrix as its codes times its scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from megavideo.border.refused import Refused
from megavideo.border.tensor_file import open_tensors, read_tensors, reading_tensors
from megavideo.config.schema.model import ModelConfig
from megavideo.errors import CheckpointError
from megavideo.interop.names import Dialect, tensor_rules
from megavideo.interop.quantization import dequantise, scale_name
from megavideo.interop.source import find_source


class WrittenWeights:
    """The parameters of a model in exported files, under our names and one by one.

    Raises OSError and Refused where a file cannot be read.
    """

    def __init__(self, files: Sequence[Path], config: ModelConfig, dialect: Dialect) -> None:
        self._rules = {rule.ours: rule for rule in tensor_rules(config, dialect)}
        handles = [open_tensors(path) for path in files]
        self._holds = {key: handle for handle in handles for key in handle.keys()}  # noqa: SIM118

    def value(self, name: str) -> torch.Tensor:
        """A whole parameter, float32."""
        rule = self._rules[name]
        return rule.to_ours([self._tensor(part) for part in rule.theirs])

    def _tensor(self, name: str) -> torch.Tensor:
        with reading_tensors():
            tensor: torch.Tensor = self._holds[name].get_tensor(name)
            scale = scale_name(name)
            return dequantise(tensor, self._holds[scale].get_tensor(scale)) if scale in self._holds else tensor.float()


def dequantised(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a file without the scales among them: matrices that have one are multiplied by it, in float32."""
    scales = {scale_name(name) for name in tensors} & tensors.keys()
    return {
        name: dequantise(tensor, tensors[scale_name(name)]) if scale_name(name) in scales else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }


def load_transformer(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """An exported folder, quantised or not, as diffusers' `WanTransformer3DModel`, for `transformer=` of its pipelines.

    It is in `dtype`, and in float32 where diffusers computes in that. Raises CheckpointError where the folder holds no
    such model.
    """
    source = find_source(folder)
    config = {name: value for name, value in (source.config or {}).items() if name != "quantization_config"}
    with torch.device("meta"):
        model: Any = WanTransformer3DModel.from_config(config)
    precise = tuple(model._keep_in_fp32_modules or ())
    try:
        tensors = {
            name: tensor.to(torch.float32 if any(part in name for part in precise) else dtype)
            for path in source.files
            for name, tensor in dequantised(read_tensors(path)).items()
        }
    except (OSError, Refused) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}). Remedy: copy the folder again") from error
    try:
        return fill(model, tensors)
    except RuntimeError as error:
        what = str(error).replace("\n", " ")
        raise CheckpointError(
            f"{folder}: not the model of its config.json ({what}). Remedy: export it again"
        ) from error


def fill(model: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A `WanTransformer3DModel` on the meta device, with `tensors`; RuntimeError where they are not just its own."""
    model.load_state_dict(tensors, strict=True, assign=True)
    rope = model.rope  # its tables are in no file
    model.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    return model.eval()
