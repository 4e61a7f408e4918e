"""How far two pictures are apart in the features of a convolutional network, as LPIPS measures (Zhang et al. 2018).

Features are normalised to unit length at every place, and their squared differences averaged over places. Without
weights the network is a small one of fixed random filters: its distances still rank blur and broken structure as worse
than a like amount of pixel error (LPIPS, section 4: untrained networks), though not as well as a trained one's, and
its numbers cannot be compared with LPIPS'. With a file of VGG-16's weights it is VGG, and with LPIPS' linear weights in
the same file it is LPIPS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from megavideo.border.refused import Refused
from megavideo.border.tensor_file import read_tensors
from megavideo.errors import ConfigError

RANDOM_NAME = "fixed random features"
_SEED = 0
_RANDOM_WIDTHS = ((24, 24), (48, 48), (96, 96))
# Convolutions of torchvision's VGG-16 between its poolings; the last activation of each run is compared.
_VGG_RUNS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
# LPIPS' scaling from -1..1 to what VGG was trained on.
_VGG_SHIFT, _VGG_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY = 1e-10


class PerceptualDistance(nn.Module):
    """Distance of pictures; `weights` is a safetensors file, or None for fixed random features. It learns nothing."""

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        self.name = RANDOM_NAME if weights is None else Path(weights).name
        tensors = _random_tensors() if weights is None else _read(weights)
        self._runs = _VGG_RUNS if weights is not None else tuple(tuple(run) for run in _random_runs())
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor, persistent=False)
        self._lin = [f"lin{level}" for level in range(len(self._runs)) if f"lin{level}" in tensors]
        shift, scale = (_VGG_SHIFT, _VGG_SCALE) if weights is not None else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1), persistent=False)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Distance [N] of pictures [N, 3, H, W] in -1..1."""
        x = (torch.cat([left, right]).float() - self.get_buffer("shift")) / self.get_buffer("scale")
        levels = []
        for level, run in enumerate(self._runs):
            x = F.max_pool2d(x, 2) if level else x
            for number in run:
                x = F.relu(F.conv2d(x, self._of(number, "weight"), self._of(number, "bias"), padding=1))
            unit = x * torch.rsqrt(x.square().sum(1, keepdim=True) + _TINY)
            difference = (unit[: len(left)] - unit[len(left) :]).square()
            if self._lin:
                difference = difference * self.get_buffer(self._lin[level])
            levels.append(difference.sum(1).mean((1, 2)))
        total = torch.stack(levels).sum(0)
        return total if self._lin else total / len(levels)

    def _of(self, number: int, kind: str) -> torch.Tensor:
        return self.get_buffer(f"features_{number}_{kind}")


def _random_runs() -> list[list[int]]:
    numbers = iter(range(sum(len(run) for run in _RANDOM_WIDTHS)))
    return [[next(numbers) for _ in run] for run in _RANDOM_WIDTHS]


def _random_tensors() -> dict[str, torch.Tensor]:
    """Filters drawn after He et al. 2015; of the first layer half answer to edges alone, the others to colour too."""
    generator = torch.Generator().manual_seed(_SEED)
    widths = [3, *(width for run in _RANDOM_WIDTHS for width in run)]
    tensors = {}
    for number, (before, after) in enumerate(pairwise(widths)):
        weight = torch.randn(after, before, 3, 3, generator=generator) * (2.0 / (9 * before)) ** 0.5
        if number == 0:
            weight[::2] -= weight[::2].mean((2, 3), keepdim=True)
        tensors[f"features.{number}.weight"] = weight
        tensors[f"features.{number}.bias"] = 0.1 * torch.randn(after, generator=generator)
    return tensors


def _read(weights: str) -> dict[str, torch.Tensor]:
    field = "loss.perceptual_weights"
    remedy = "save vgg16().state_dict() of torchvision as safetensors, with LPIPS' linear weights if you have them"
    try:
        stored = read_tensors(Path(weights).expanduser())
    except (OSError, Refused) as error:
        raise ConfigError(field, weights, f"cannot be read ({error})", remedy) from error
    tensors: dict[str, torch.Tensor] = {}
    for number in (number for run in _VGG_RUNS for number in run):
        for kind in ("weight", "bias"):
            name = f"features.{number}.{kind}"
            if name not in stored:
                raise ConfigError(field, weights, f"it has no {name}", remedy)
            tensors[name] = stored[name].float()
    return tensors | _linear(stored)


def _linear(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LPIPS' weights `lin0.model.1.weight` and so on, of every level or of none."""
    found = {}
    for name, tensor in stored.items():
        match = re.fullmatch(r"(lin\d)\.model\.1\.weight", name)
        if match:
            found[match[1]] = tensor.float().view(1, -1, 1, 1)
    return found if len(found) == len(_VGG_RUNS) else {}
