"""Which clips an autoencoder is measured on, and never trained on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from megavideo.encoders.encode.clips import PlannedClip

_log = logging.getLogger(__name__)


def hold_out(
    clips: Sequence[PlannedClip], measurable: Sequence[PlannedClip], count: int
) -> tuple[list[PlannedClip], list[PlannedClip]]:
    """`count` of the `measurable` clips, each of another file, and the clips of all files that they are not of.

    The shots of one film share their light, faces and grain: measured on a shot whose neighbours were trained on, an
    autoencoder looks better than it is. The files with the smallest hashes are held out, so that further files move as
    few as can be. A folder with too few files is divided by clips instead, with a warning.
    """
    films: dict[str, list[PlannedClip]] = {}
    for clip in sorted(measurable, key=lambda clip: _digest(clip.row.clip_id)):
        films.setdefault(clip.row.file, []).append(clip)
    if len(films) > count:
        names = sorted(films, key=_digest)[:count]
        return [films[name][0] for name in names], [clip for clip in clips if clip.row.file not in names]
    if films:
        _log.warning(
            "train-vae: %d clips are to be held out, of %d files: they share their files with clips that are trained "
            "on, and measure better than unseen films would. Remedy: give data.src more files, or lower data.held_out",
            count, len(films),
        )  # fmt: skip
    held_out = sorted(measurable, key=lambda clip: _digest(clip.row.clip_id))[:count]
    ids = {clip.row.clip_id for clip in held_out}
    return held_out, [clip for clip in clips if clip.row.clip_id not in ids]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
