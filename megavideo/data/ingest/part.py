"""What was found in one input, kept as one small JSON file that is written whole or not at all.

A part lies under a name made of its input's, and tells of which content and which settings it is the outcome. It is
used again as long as the settings are the same, and the input's time of change and mark, or else its whole content. It
holds measurements only: thresholds and captions are applied later, so that changing them needs no decoding.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from megavideo.data.clips.content import content_mark
from megavideo.data.clips.media import MediaInfo
from megavideo.observe.whole_file import write_file

PARTS_FOLDER = "parts"
UNREADABLE = "unreadable"
UNREACHABLE = "unreachable"
OWN_SCORE = "own score"
CRASHED = "crashed"
# Faults that another try may not meet.
PASSING_FAULTS = frozenset((UNREACHABLE, OWN_SCORE, CRASHED))
_FORMAT = 2
_BLOCK_BYTES = 1 << 20

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Piece:
    """A run of frames without a cut: `start` is its first frame in the file and `start_seconds` that frame's time.

    `crop` (left, top, right, bottom) is the picture without letterbox, None for all of it. `hash_bits` is the
    perceptual hash, `colours` the coarse colours that confirm it, both hexadecimal; `picture` a JPEG in base64.
    """

    start: int
    start_seconds: float
    frames: int
    fps: float
    crop: Box | None
    scores: dict[str, float]
    hash_bits: str
    colours: str
    picture: str


@dataclass(frozen=True)
class Identity:
    """Which content an input had: its mark, time of change in nanoseconds, and the hash of all of it.

    All are empty where the input could not be read.
    """

    mark: str = ""
    mtime_ns: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Part:
    """The outcome of one input: what it is and its pieces, or the kind of fault with its reason.

    `sought` tells whether the file's clock only runs forward, so that a reader may seek by time.
    """

    file: str
    recipe: str
    identity: Identity
    media: MediaInfo | None
    sought: bool
    pieces: tuple[Piece, ...]
    fault: str | None = None
    reason: str | None = None


def part_path(out: Path, file: str) -> Path:
    """Where the part of an input lies."""
    name = hashlib.sha256(file.encode()).hexdigest()
    return out / PARTS_FOLDER / name[:2] / f"{name[:32]}.json"


def identify(path: Path) -> Identity:
    """The identity of a file, which is read from end to end; OSError where it cannot be."""
    mtime_ns = os.stat(path).st_mtime_ns  # first: a change meanwhile is then seen by the next run
    return Identity(content_mark(path), mtime_ns, _digest(path))


def write_part(out: Path, part: Part) -> None:
    """Write the part of an input; OSError where the disk refuses."""
    text = json.dumps({"format": _FORMAT, **asdict(part)}, ensure_ascii=False)
    write_file(part_path(out, part.file), text.encode())


def read_part(out: Path, file: str) -> Part | None:
    """The part of an input; None where there is none that can be read."""
    try:
        values = json.loads(part_path(out, file).read_bytes())
        if values.pop("format") != _FORMAT or values["file"] != file:
            return None
        return _part(values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def current_part(out: Path, path: Path, file: str, recipe: str) -> Part | None:
    """The part of an input if it is still true: made with this recipe, and of the content that the file has now.

    New content is noticed by its size and blocks even where the time of change was kept, and by its time wherever in
    the file it is. One that was touched or copied and not changed keeps its part, which is written with the new time.
    """
    part = read_part(out, file)
    if part is None or part.recipe != recipe:
        return None
    if part.fault == UNREACHABLE:
        return part
    try:
        mtime_ns = os.stat(path).st_mtime_ns
        if content_mark(path) != part.identity.mark:
            return None
        if mtime_ns != part.identity.mtime_ns:
            if _digest(path) != part.identity.digest:
                return None
            part = replace(part, identity=replace(part.identity, mtime_ns=mtime_ns))
            write_part(out, part)
    except OSError:
        return None
    return part


def _part(values: dict[str, Any]) -> Part:
    pieces = []
    for piece in values["pieces"]:
        crop = piece["crop"]
        pieces.append(Piece(**{**piece, "crop": tuple(crop) if crop else None}))
    media = values["media"]
    return Part(
        **{
            **values,
            "identity": Identity(**values["identity"]),
            "media": MediaInfo(**media) if media else None,
            "pieces": tuple(pieces),
        }
    )


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
