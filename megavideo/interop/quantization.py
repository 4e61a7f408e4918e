"""Matrices of linear layers in 8 bits: codes with one scale for each output channel, and what that loses.

A row of the matrix is an output channel. Its scale maps its largest magnitude to the largest code, so that nothing is
clipped; a code times its scale is the value again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

_SCALE_SUFFIX = "_scale"  # `X.weight` has `X.weight_scale`, as compressed-tensors calls it
# the least scale: of a row of zeros it is not 0, by which nothing can be divided
_LEAST_SCALE = torch.finfo(torch.float32).tiny
_BLOCK_VALUES = 1 << 20  # that are worked on at once, whatever the size of the matrix


@dataclass(frozen=True)
class Scheme:
    """A form of codes: their type, the largest of them, and whether they are integers or floating-point numbers."""

    name: str
    dtype: torch.dtype
    largest: float
    kind: Literal["float", "int"]


# e4m3 has 3 bits of mantissa, no infinity, and 448 as its largest number (OCP 8-bit floating point, 2023); the integers
# are symmetric, and -128 is not used
SCHEMES: Mapping[str, Scheme] = {
    "fp8": Scheme("fp8", torch.float8_e4m3fn, 448.0, "float"),
    "int8": Scheme("int8", torch.int8, 127.0, "int"),
}


@dataclass(frozen=True)
class MatrixLoss:
    """What the codes of a matrix lose.

    `relative_error` is the norm of the difference over that of the matrix (Frobenius), `max_abs_error` its largest
    magnitude. `saturated_share` of the values have the largest code, as the largest of each row has, and `zeroed_share`
    were not zero and are now.
    """

    name: str
    shape: tuple[int, ...]
    relative_error: float
    max_abs_error: float
    saturated_share: float
    zeroed_share: float


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter of ours is quantised: the matrix of a linear layer of a block.

    Embeddings, the projection of the timestep, modulation tables, norms, biases and the head are few and sensitive.
    """
    return name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2


def scale_name(name: str) -> str:
    """The name of the scales of the matrix called `name`."""
    return f"{name}{_SCALE_SUFFIX}"


@torch.no_grad()
def quantise(matrix: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [out, in] of a finite matrix [out, in], and its scales, float32 [out, 1]. Ties go to the even code."""
    codes = torch.empty(matrix.shape, dtype=scheme.dtype)
    scale = torch.empty(matrix.shape[0], 1)
    for rows in _blocks(matrix):
        values, largest = matrix[rows].float(), scheme.largest
        scale[rows] = (values.abs().amax(1, keepdim=True) / largest).clamp(min=_LEAST_SCALE)
        values = (values / scale[rows]).clamp(-largest, largest)  # rounding of the scale may lead beyond
        codes[rows] = (values.round() if scheme.kind == "int" else values).to(scheme.dtype)
    return codes, scale


def dequantise(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The matrix, float32 [out, in], that codes [out, in] and scales [out, 1] stand for."""
    return codes.float() * scale.float()


@torch.no_grad()
def loss_of(name: str, matrix: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, scheme: Scheme) -> MatrixLoss:
    """What `codes` with `scale` lose of `matrix`."""
    squares = error_squares = largest = 0.0
    saturated = zeroed = 0
    for rows in _blocks(matrix):
        values, numbers = matrix[rows].float(), codes[rows].float()
        error = numbers * scale[rows] - values
        squares += float(values.double().square().sum())
        error_squares += float(error.double().square().sum())
        largest = max(largest, float(error.abs().max()))
        saturated += int((numbers.abs() == scheme.largest).sum())
        zeroed += int(((numbers == 0) & (values != 0)).sum())
    relative = math.sqrt(error_squares / squares) if squares else 0.0
    count = matrix.numel()
    return MatrixLoss(name, tuple(matrix.shape), relative, largest, saturated / count, zeroed / count)


def _blocks(matrix: torch.Tensor) -> Iterator[slice]:
    rows = max(1, _BLOCK_VALUES // matrix.shape[1])
    for begin in range(0, matrix.shape[0], rows):
        yield slice(begin, begin + rows)
