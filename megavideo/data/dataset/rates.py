"""What a dataset tells of time: the frame rates of its videos, and how many frames of their clips it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_LISTED = 10
_DIGITS = 2  # rates are averages of clocks that files round
_TOLD = ("total", "used", "skipped", "doubled")
SOURCE_FRAMES = "source_frames"  # of a row of the manifest: a `FrameUse`


@dataclass(frozen=True)
class FrameCounts:
    """Frames of all clips that became samples: `used` of `total` are shown by them, `doubled` times one once more.

    `skipped` were left out between those that are shown, to bring a clip to a lower rate; the rest lay before or after
    them. `single` videos are shown by one latent frame, as images are. All are 0 where it is not known.
    """

    total: int = 0
    used: int = 0
    skipped: int = 0
    doubled: int = 0
    single: int = 0

    def with_rows(self, rows: Iterable[Mapping[str, Any]]) -> FrameCounts:
        """The same with rows of the manifest added, those that do not tell left out."""
        counts = Counter(asdict(self))
        for row in rows:
            told = row.get(SOURCE_FRAMES)
            if told is not None:
                counts.update({name: told.get(name, 0) for name in _TOLD})
                counts["single"] += told["total"] > 1 and row["latent"][0] == 1
        return FrameCounts(**counts)

    @property
    def words(self) -> str:
        """The same as people read it; empty where nothing is known."""
        if not self.total:
            return ""
        said = f"{self.used:,} of {self.total:,} frames are used"
        if beyond := self.total - self.used - self.skipped:
            said += f", {beyond:,} are before or after the window"
        if self.skipped:
            said += f", {self.skipped:,} left out between others"
        if self.doubled:
            said += f", {self.doubled:,} times one is repeated"
        if self.single:
            said += f"; {self.single:,} videos are so short that they became images"
        return said


NOT_COUNTED = FrameCounts()


@dataclass(frozen=True)
class RateCount:
    """How many videos have this rate in frames a second."""

    fps: float
    samples: int


@dataclass(frozen=True)
class Rates:
    """Frames a second of videos. `counts` are the ten most common rates, and `others` the samples of all others."""

    minimum: float
    median: float
    maximum: float
    counts: tuple[RateCount, ...]
    others: int

    @staticmethod
    def of(counted: Counter[float]) -> Rates | None:
        """Those of as many videos of each rate; None where there are none."""
        if not counted:
            return None
        rates = sorted(counted)
        ends = np.cumsum([counted[rate] for rate in rates])
        most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        return Rates(
            minimum=rates[0],
            median=rates[int(np.searchsorted(ends, (int(ends[-1]) + 1) // 2))],
            maximum=rates[-1],
            counts=tuple(RateCount(*item) for item in most[:_LISTED]),
            others=sum(count for _, count in most[_LISTED:]),
        )

    @property
    def words(self) -> str:
        """The same as people read it."""
        said = ", ".join(f"{one.samples:,} at {one.fps:g}" for one in self.counts)
        others = f", {self.others:,} at others" if self.others else ""
        span = f"{self.minimum:g} to {self.maximum:g}, median {self.median:g}"
        return f"{self.minimum:g}" if self.minimum == self.maximum else f"{span} ({said}{others})"


def count_rates(latent: npt.NDArray[np.integer[Any]], fps: npt.NDArray[np.float64]) -> Counter[float]:
    """Videos of each rate, to two digits after the point, among samples of sizes latent [n, 3] and rates fps [n]."""
    values, counts = np.unique(np.round(fps[latent[:, 0] > 1], _DIGITS), return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
