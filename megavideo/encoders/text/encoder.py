"""What every text encoder offers to the rest of megavideo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch


class TextEncoder(Protocol):
    """Turns captions into unpadded sequences of vectors of width `dim`, at most `max_tokens` long."""

    dim: int
    max_tokens: int

    def encode(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """One float32 tensor [L, dim] a caption, 1 <= L <= max_tokens, for the empty caption too."""
        ...

    def count_tokens(self, caption: str) -> int:
        """The length that `caption` would have without a limit: above `max_tokens` it is cut."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that `load_encoders` needs to `folder`."""
        ...
