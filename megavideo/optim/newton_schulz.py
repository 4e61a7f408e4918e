"""The update of Muon for one matrix: its momentum with all singular values brought close to one.

The iteration and its coefficients are those of Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural
networks"; the scale is that of Liu et al. 2025, "Muon is scalable for LLM training".
"""

from __future__ import annotations

import math

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_RMS = 0.2


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [R, C] of the same singular vectors, whose singular values are about one (0.65 to 1.25) where not tiny.

    Five steps of the quintic X -> aX + b(XX')X + c(XX')^2 X in the matrix's own dtype, after division by its norm.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def matrix_update(matrix: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix times 0.2 sqrt(max(R, C)), so that the root of its mean square is 0.2.

    That is about what an update of AdamW has, so that its learning rate and weight decay serve for both.
    """
    return orthogonalise(matrix).mul_(_RMS * math.sqrt(max(matrix.shape)))
