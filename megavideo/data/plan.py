"""The step plan: what every global step trains on, as a pure function of (manifest, seed, limits, step).

Ranks only take their slice of it, so that the data of a step depends on no layout and a run resumes anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megavideo.data.packing import PackLimits, fits, pack_window
from megavideo.data.patches import token_grid
from megavideo.errors import DataError
from megavideo.types import PackSegment, SampleInfo

_WINDOW_PACKS = 64  # samples are packed among neighbours of the shuffled order, about this many packs at a time
_MAX_NAMED = 5


@dataclass(frozen=True)
class Dropped:
    """A sample that no pack can take."""

    sample_id: str
    reason: str


class StepPlan:
    """Packs of every global step.

    Epochs follow each other without a gap; each is shuffled and packed anew. `visit` is the epoch. Memory is one
    epoch's packs; reaching a far step costs one packing per epoch before it, once.
    """

    def __init__(
        self,
        samples: Sequence[SampleInfo],
        patch: tuple[int, int, int],
        limits: PackLimits,
        packs_per_step: int,
        seed: int,
    ) -> None:
        self._seed = seed
        self._limits = limits
        self._packs_per_step = packs_per_step
        self._segments, self.dropped = _usable(samples, patch, limits)
        self._first_pack: list[int] = [0]  # number of the first pack of each epoch reached so far
        self._epochs: dict[int, list[tuple[PackSegment, ...]]] = {}
        tokens = sum(segment.grid.num_tokens for segment in self._segments)
        self.tokens_per_epoch = tokens
        self._window = max(1, _WINDOW_PACKS * limits.tokens * len(self._segments) // tokens)

    def step(self, step: int) -> list[tuple[PackSegment, ...]]:
        """The packs of one global step, in order."""
        begin = step * self._packs_per_step
        return [self._pack(number) for number in range(begin, begin + self._packs_per_step)]

    def rank_packs(self, step: int, dp_rank: int, dp_size: int) -> list[tuple[PackSegment, ...]]:
        """One data-parallel rank's packs of a step; `dp_size` divides the packs of a step."""
        share = self._packs_per_step // dp_size
        return self.step(step)[dp_rank * share : (dp_rank + 1) * share]

    def epoch_of(self, step: int) -> int:
        """The epoch in which a step begins."""
        return self._locate(step * self._packs_per_step)[0]

    def packs_in_epoch(self, epoch: int) -> int:
        """Packs that an epoch makes."""
        return len(self._epoch(epoch))

    def _pack(self, number: int) -> tuple[PackSegment, ...]:
        epoch, offset = self._locate(number)
        return self._epoch(epoch)[offset]

    def _locate(self, number: int) -> tuple[int, int]:
        while self._first_pack[-1] <= number:
            epoch = len(self._first_pack) - 1
            self._first_pack.append(self._first_pack[-1] + len(self._epoch(epoch)))
        epoch = int(np.searchsorted(self._first_pack, number, side="right")) - 1
        return epoch, number - self._first_pack[epoch]

    def _epoch(self, epoch: int) -> list[tuple[PackSegment, ...]]:
        if epoch not in self._epochs:
            packs = self._pack_epoch(epoch)
            # a step may straddle two epochs; older ones are not asked for again
            self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch - 1} | {epoch: packs}
        return self._epochs[epoch]

    def _pack_epoch(self, epoch: int) -> list[tuple[PackSegment, ...]]:
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        order = generator.permutation(len(self._segments))
        packs: list[tuple[PackSegment, ...]] = []
        for begin in range(0, len(order), self._window):
            window = [self._segments[i] for i in order[begin : begin + self._window]]
            visited = [PackSegment(s.index, s.sample_id, epoch, s.grid, s.text_tokens) for s in window]
            packs += pack_window(visited, self._limits)
        return [packs[i] for i in generator.permutation(len(packs))]


def _usable(
    samples: Sequence[SampleInfo], patch: tuple[int, int, int], limits: PackLimits
) -> tuple[list[PackSegment], tuple[Dropped, ...]]:
    usable: list[PackSegment] = []
    dropped: list[Dropped] = []
    for sample in samples:
        segment = PackSegment(sample.index, sample.sample_id, 0, token_grid(sample.latent, patch), sample.text_tokens)
        if fits(segment, limits):
            usable.append(segment)
            continue
        need = f"{segment.grid.num_tokens} video and {segment.text_tokens} text tokens"
        dropped.append(Dropped(sample.sample_id, f"{need}; a pack takes {limits.tokens} and {limits.text_tokens}"))
    if dropped:
        named = "; ".join(f"{d.sample_id}: {d.reason}" for d in dropped[:_MAX_NAMED])
        logging.getLogger(__name__).warning("%d of %d samples fit no pack: %s", len(dropped), len(samples), named)
    if not usable:
        raise DataError(
            f"none of the {len(samples)} samples fits a pack of data.tokens_per_pack={limits.tokens} and "
            f"data.text_tokens_per_pack={limits.text_tokens}. Remedy: raise them, or encode with a smaller area or "
            "fewer frames"
        )
    tokens = sum(segment.grid.num_tokens for segment in usable)
    if tokens < limits.tokens and len(usable) < limits.segments:
        raise DataError(
            f"the whole dataset has {tokens} video tokens in {len(usable)} samples: too few to fill one pack of "
            f"data.tokens_per_pack={limits.tokens}. Remedy: set data.tokens_per_pack={tokens} or less, or add samples"
        )
    return usable, tuple(dropped)
