"""Clips as they are judged, in temporary files: in memory stays only what near-duplicates are found by.

They are written as each input's part is judged, and read again in the same order once it is known which clips repeat
others.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from megavideo.data.ingest.duplicates import find_duplicates
from megavideo.data.ingest.fingerprints import Fingerprints
from megavideo.data.ingest.part import Piece
from megavideo.data.ingest.report import DUPLICATE, DroppedClip
from megavideo.data.ingest.rows import ClipRow, clip_line, parse_row
from megavideo.data.ingest.tally import Spans


class Judged:
    """The clips that pass and those that do not, in the order of files and frames, while the last step goes on.

    `spans` tells over which values their measures go.
    """

    def __init__(self, folder: Path) -> None:
        self.spans = Spans()
        self._lines = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `__exit__`
        self._fingerprints = Fingerprints(folder)
        self._places = array("Q")  # of each clip that passes, in the file of lines

    def __enter__(self) -> Judged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
        self._fingerprints.close()

    def passes(self, row: ClipRow, piece: Piece) -> None:
        """Add a clip that is kept unless it repeats another."""
        self.spans.add(row)
        self._places.append(self._lines.tell())
        self._lines.write(clip_line(row))
        seconds = None if row.is_image else row.frames / row.fps
        self._fingerprints.add(piece.hash_bits, piece.colours, row.width * row.height, row.frames, seconds)

    def drops(self, clip: DroppedClip) -> None:
        """Add a clip, or a whole input, that is not used."""
        self.spans.add(clip)
        self._lines.write(dropped_line(clip))

    def outcomes(self, duplicate_bits: int | None) -> Iterator[ClipRow | DroppedClip]:
        """Every clip in order: those that pass and repeat no other, and those that are dropped."""
        repeated = np.full(len(self._places), -1, np.int64)
        if duplicate_bits is not None:
            repeated = find_duplicates(self._fingerprints, duplicate_bits)
        self._lines.seek(0)
        passed = 0
        for line in self._lines:
            values = json.loads(line)
            if "kind" in values:
                yield DroppedClip(**values)
                continue
            row = parse_row(values)
            yield row if repeated[passed] < 0 else self._repeat(row, repeated[passed])
            passed += 1

    def _repeat(self, row: ClipRow, other: npt.NDArray[np.int64]) -> DroppedClip:
        here = self._lines.tell()
        self._lines.seek(self._places[int(other)])
        values: dict[str, Any] = json.loads(self._lines.readline())
        self._lines.seek(here)
        place = values["file"] if values["start"] == 0 else f"{values['file']} from frame {values['start']}"
        return dropped_clip(row, DUPLICATE, f"repeats {place}")


def dropped_clip(row: ClipRow, kind: str, reason: str) -> DroppedClip:
    """A clip that is not used, and why."""
    seconds = 0.0 if row.is_image else round(row.frames / row.fps, 3)
    return DroppedClip(row.file, kind, reason, row.clip_id, row.start, row.frames, seconds, row.scores)


def dropped_line(clip: DroppedClip) -> bytes:
    """A line of `dropped.jsonl`."""
    return json.dumps(asdict(clip), ensure_ascii=False).encode() + b"\n"
