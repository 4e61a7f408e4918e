"""A head of linear layers on an embedding, read from one safetensors file."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F

from megavideo.border.files import read_file
from megavideo.border.refused import Refused
from megavideo.border.tensor_file import read_tensors
from megavideo.errors import ConfigError

_FIELD = "scores.learned_aesthetic.head"
_WEIGHT = re.compile(r"(?:(.*)\.)?weight")
_REMEDY = "save linear layers, 0.weight [OUT, IN] and 0.bias [OUT] and so on, the last with one output, as safetensors"


class Head:
    """Linear layers in the order of the numbers in their names, `activation` between them; gives one number.

    Dropout does nothing when it is used, so that files of predictors that had it between the layers serve as well.
    """

    def __init__(self, value: str, activation: str) -> None:
        path = Path(value).expanduser()
        try:
            tensors = read_tensors(path)
            digest = hashlib.sha256(read_file(path)).hexdigest()
        except (OSError, Refused) as error:
            raise ConfigError(_FIELD, value, f"cannot be read ({error})", _REMEDY) from error
        self._value = value
        self._activation = activation
        self.key = f"{digest[:32]} {activation}"
        self._layers = self._read(tensors)

    def check_width(self, width: int | None) -> None:
        """Raise ConfigError where the head is none for embeddings of `width` numbers."""
        inputs = self._layers[0][0].shape[1]
        if width is not None and inputs != width:
            rule = f"takes {inputs} numbers, and the embeddings of scores.learned_aesthetic.folder have {width}"
            raise ConfigError(_FIELD, self._value, rule, "give the head that was trained on this model")

    @torch.inference_mode()
    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The values [N] of embeddings float32 [N, D]."""
        values = embeddings
        for number, (weight, bias) in enumerate(self._layers):
            if number and self._activation != "none":
                values = F.relu(values) if self._activation == "relu" else F.gelu(values)
            values = F.linear(values, weight, bias)
        return values[:, 0]

    def _read(self, tensors: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        prefixes = sorted((match[1] or "" for name in tensors if (match := _WEIGHT.fullmatch(name))), key=_in_order)
        layers = []
        for prefix in prefixes:
            dot = f"{prefix}." if prefix else ""
            weight, bias = tensors[f"{dot}weight"].float(), tensors.get(f"{dot}bias")
            if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
                raise ConfigError(_FIELD, self._value, f"{dot}weight is no linear layer", _REMEDY)
            layers.append((weight, None if bias is None else bias.float()))
        if not layers or layers[-1][0].shape[0] != 1:
            raise ConfigError(_FIELD, self._value, "its last linear layer has not one output", _REMEDY)
        for (before, _), (after, _) in pairwise(layers):
            if before.shape[0] != after.shape[1]:
                rule = f"a layer gives {before.shape[0]} numbers, and the next takes {after.shape[1]}"
                raise ConfigError(_FIELD, self._value, rule, _REMEDY)
        return layers


def _in_order(prefix: str) -> list[tuple[int, str]]:
    """Names by their numbers: layers.2 before layers.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in prefix.split(".")]
