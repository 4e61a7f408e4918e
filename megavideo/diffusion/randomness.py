"""Randomness that belongs to the sample: every draw is a function of (seed, sample id, visit, purpose) alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SampleKey:
    """One visit of one sample under one seed."""

    seed: int
    sample_id: str
    visit: int

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator for one purpose, independent of those of all others."""
        text = f"{self.seed}/{self.visit}/{purpose}/{self.sample_id}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def uniform(self, purpose: str) -> float:
        """One number in [0, 1), float64."""
        return float(torch.rand((), generator=self.generator(purpose), dtype=torch.float64))

    def normal(self, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers, float32."""
        return torch.randn(shape, generator=self.generator(purpose))
