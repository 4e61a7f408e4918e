"""What measures clips: handed in by the caller, so that nothing here knows models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from megavideo.data.ingest.rows import ClipRow

EMBEDDING = "embedding"  # the measure whose values are vectors


@dataclass(frozen=True)
class ClipFrames:
    """A clip as measures see it: its row, and frames of it, uint8 [N, h, w, 3], in square pixels, without letterbox."""

    row: ClipRow
    frames: np.ndarray


class Measure(Protocol):
    """One measure of clips.

    `key` tells all that its values depend on beside the clip: weights and settings. `reads_caption` is for values that
    depend on the caption too.
    """

    name: str
    key: str
    reads_caption: bool

    def measure(self, clips: Sequence[ClipFrames]) -> list[float] | list[np.ndarray]:
        """The value of each clip, which depends on no other clip; vectors float32 [D] of length one for `EMBEDDING`."""
        ...


class FileMeasure(Protocol):
    """One that needs the file of a clip and no frames."""

    name: str
    key: str

    def measure_file(self, path: Path, rows: Sequence[ClipRow]) -> list[float | None]:
        """The value of each clip of a file; None where it has none. DataError where the file cannot be read."""
        ...


def value_key(measure: Measure | FileMeasure, row: ClipRow, view: tuple[int, ...]) -> str:
    """A name for all that a value depends on; `view` tells how frames are chosen and scaled."""
    reads_caption = getattr(measure, "reads_caption", False)
    said = [measure.key, row.crop, view, row.caption if reads_caption else None]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
