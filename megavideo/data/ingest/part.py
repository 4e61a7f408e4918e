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

import xxhash

from megavideo.border.fields import Count, Finite, Positive, Size
from megavideo.border.files import open_file
from megavideo.border.json_text import read_json
from megavideo.border.names import beneath
from megavideo.border.refused import Refused
from megavideo.data.clips.content import content_mark
from megavideo.data.clips.media import MediaInfo
from megavideo.observe.whole_file import write_file

PARTS_FOLDER = "parts"
UNREADABLE = "unreadable"
UNREACHABLE = "unreachable"
OWN_SCORE = "own score"
CRASHED = "crashed"
LARGE = "large"
# Faults that another try may not meet.
PASSING_FAULTS = frozenset((UNREACHABLE, OWN_SCORE, CRASHED))
_FORMAT = 3
_BLOCK_BYTES = 1 << 20

Box = tuple[Count, Count, Count, Count]


@dataclass(frozen=True)
class Piece:
    """A run of frames without a cut: `start` is its first frame in the file, at `start_seconds`.

    `start_digest` is the digest of that frame's picture, `frame_marks` are two digits of those of all its frames.
    `crop` (left, top, right, bottom) is the picture without letterbox, None for all of it. `hash_bits` is the
    perceptual hash, `colours` the coarse colours that confirm it, both hexadecimal; `picture` a JPEG in base64.
    `is_transition` is for frames between two shots, which dissolve or fade.
    """

    start: Count
    start_seconds: Finite
    start_digest: str
    frame_marks: str
    frames: Size
    fps: Positive
    crop: Box | None
    scores: dict[str, Finite]
    hash_bits: str
    colours: str
    picture: str
    is_transition: bool = False


@dataclass(frozen=True)
class Identity:
    """Which content an input had: its mark, time of change in nanoseconds, and the hash of all of it.

    All are empty where the input could not be read. One of a store has a `version` in place of a time.
    """

    mark: str = ""
    mtime_ns: int = 0
    digest: str = ""
    version: str = ""


@dataclass(frozen=True)
class Part:
    """The outcome of one input: what it is and its pieces, or the kind of fault with its reason.

    `sought` tells whether every frame has a time of its own and the clock only runs forward, so that a reader may seek
    by time. `pixels` are those of a frame where they were too many for the settings of then, and nothing was decoded.
    """

    file: str
    recipe: str
    identity: Identity
    media: MediaInfo | None
    sought: bool
    pieces: tuple[Piece, ...]
    fault: str | None = None
    reason: str | None = None
    pixels: Count = 0
    format: int = _FORMAT


def part_path(out: Path, file: str) -> Path:
    """Where the part of an input lies."""
    name = hashlib.sha256(file.encode()).hexdigest()
    return out / PARTS_FOLDER / name[:2] / f"{name[:32]}.json"


def identify(path: Path) -> Identity:
    """The identity of a file, which is read from end to end; OSError where it cannot be, Refused for what is none."""
    mtime_ns = os.stat(path).st_mtime_ns  # first: a change meanwhile is then seen by the next run
    return Identity(content_mark(path), mtime_ns, _digest(path))


def write_part(out: Path, part: Part) -> None:
    """Write the part of an input; OSError where the disk refuses."""
    text = json.dumps(asdict(part), ensure_ascii=False)
    write_file(part_path(out, part.file), text.encode())


def read_part(out: Path, file: str) -> Part | None:
    """The part of an input; None where there is none that can be read."""
    try:
        part = read_json(part_path(out, file), Part)
    except (OSError, Refused):
        return None
    return part if part.format == _FORMAT and part.file == file else None


def current_part(out: Path, root: Path, file: str, recipe: str) -> Part | None:
    """The part of an input below `root` if it is still true: of this recipe, and of the content that the file has now.

    New content is noticed by its size and blocks even where the time of change was kept, and by its time wherever in
    the file it is. One that was touched or copied and not changed keeps its part, which is written with the new time.
    """
    part = read_part(out, file)
    if part is None or part.recipe != recipe:
        return None
    if part.fault == UNREACHABLE:
        return part
    try:
        path = beneath(root, file)
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
    except Refused:  # no regular file, or a link that leads outside: it has no content, then as now
        return part if part.identity == Identity() else None
    return part


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open_file(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
