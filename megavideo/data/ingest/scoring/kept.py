"""What was measured of the clips of one input, kept as one small JSON file that is written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megavideo.border.fields import Finite
from megavideo.border.json_text import read_json
from megavideo.observe.whole_file import write_file

SCORES_FOLDER = "scores"
_FORMAT = 1


@dataclass
class KeptValues:
    """Of a clip: values by the names of measures, each with its key; None is a clip that has none by that measure.

    `embedding` is a vector float16 [D]. `fault` tells why the clip could not be measured.
    """

    values: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    embedding_key: str = ""
    embedding: np.ndarray | None = None
    fault: str | None = None


def scores_path(out: Path, file: str) -> Path:
    """Where the values of the clips of an input lie."""
    name = hashlib.sha256(file.encode()).hexdigest()
    return out / SCORES_FOLDER / name[:2] / f"{name[:32]}.json"


def read_values(out: Path, file: str) -> dict[str, KeptValues]:
    """The values of the clips of an input by their ids; none where there is no file that can be read."""
    try:
        stored = read_json(scores_path(out, file), _Stored)
        if stored.format != _FORMAT or stored.file != file:
            return {}
        return {clip_id: clip.kept() for clip_id, clip in stored.clips.items()}
    except (OSError, ValueError):
        return {}


def write_values(out: Path, file: str, clips: dict[str, KeptValues]) -> None:
    """Write the values of the clips of an input; OSError where the disk refuses."""
    stored = {"format": _FORMAT, "file": file, "clips": {clip_id: _stored(clip) for clip_id, clip in clips.items()}}
    write_file(scores_path(out, file), json.dumps(stored).encode())


def _stored(clip: KeptValues) -> dict[str, Any]:
    embedding = "" if clip.embedding is None else base64.b64encode(clip.embedding.astype("<f2").tobytes()).decode()
    return {
        "values": clip.values,
        "embedding_key": clip.embedding_key,
        "embedding": embedding,
        "fault": clip.fault,
    }


@dataclass(frozen=True)
class _StoredClip:
    """The values of a clip in a file."""

    values: dict[str, tuple[str, Finite | None]]
    embedding_key: str
    embedding: str
    fault: str | None

    def kept(self) -> KeptValues:
        """Raises ValueError where the embedding is none."""
        data = base64.b64decode(self.embedding, validate=True)
        return KeptValues(self.values, self.embedding_key, np.frombuffer(data, "<f2") if data else None, self.fault)


@dataclass(frozen=True)
class _Stored:
    format: int
    file: str
    clips: dict[str, _StoredClip]
