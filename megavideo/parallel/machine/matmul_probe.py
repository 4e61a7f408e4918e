"""A matrix product of known result and fixed size: is a device right, and is it as fast as the others?"""

from __future__ import annotations

import torch

from megavideo.parallel.machine.timer import timer_of

_CUDA_SIZE, _CPU_SIZE = 4096, 384
_PRIME = 8191  # more than either size, so that rows differ


class MatmulProbe:
    """Times C = A B of one device, with A and B [S, S] of small integers: float32 holds C exactly, TF32 A and B."""

    def __init__(self, device: torch.device) -> None:
        size = _CUDA_SIZE if device.type == "cuda" else _CPU_SIZE
        index = torch.arange(size, dtype=torch.int64)
        self._left = ((index[:, None] * 31 + index[None, :] * 17) % _PRIME % 7 - 3).float()
        self._right = ((index[:, None] * 13 + index[None, :] * 29) % _PRIME % 5 - 2).float()
        self._here = self._left.to(device), self._right.to(device)
        self._device = device

    def seconds(self, repeats: int = 3) -> float:
        """The shortest time of one product in `repeats`, of which none is the first on this device."""
        self._product()
        timer = timer_of(self._device)
        timer.mark()
        for _ in range(repeats):
            self._product()
            timer.mark()
        return min(timer.laps())

    def is_right(self, seed: int = 0) -> bool:
        """Whether C x = A (B x) for a vector x of +1 and -1: each wrong row of C is found with 1/2 (Freivalds 1977).

        Eight vectors are tried, and so it stays unseen with 2^-8.
        """
        signs = torch.randint(0, 2, (self._left.shape[0], 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1
        vectors = signs.double()
        found = self._product().cpu().double() @ vectors
        return torch.equal(found, self._left.double() @ (self._right.double() @ vectors))

    def _product(self) -> torch.Tensor:
        return self._here[0] @ self._here[1]
