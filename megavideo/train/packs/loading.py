"""Micro-batches to the device, each while the one before it trains."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import torch

from megavideo.device.copies import DeviceCopies
from megavideo.train.packs.noising import TrainBatch


class Loader:
    """Copies batches with the model's inputs in `dtype`, cast on the host: half the bytes in bf16, and the same bits.

    A batch that is not staged yet (`TrainBatch.staged`) is staged first.
    """

    def __init__(self, copies: DeviceCopies, dtype: torch.dtype) -> None:
        self._copies = copies
        self._dtype = dtype

    def on_device(self, batches: Iterable[TrainBatch]) -> Generator[TrainBatch, None, None]:
        """The batches on the device, in order. The copy of each begins before the one ahead of it is handed out.

        So the device holds two at a time, and for a moment the one before them.
        """
        ahead = None
        for batch in batches:
            staged = batch.staged(self._copies, self._dtype)
            begun = self._copies.to_device(staged.tensors())
            if ahead is not None:
                yield ahead[0].with_tensors(ahead[1].get())
            ahead = staged, begun
        if ahead is not None:
            yield ahead[0].with_tensors(ahead[1].get())
