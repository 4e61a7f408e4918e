"""Near-duplicates among all clips: the same outcome whatever the order in which they were read.

Hashes that differ in at most d bits agree in at least one of d + 1 bands of bits, so that only clips that share a band
are compared: nothing is missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megavideo.data.ingest.fingerprint import HASH_BITS

# Of 255, between the coarse colours of two copies of one clip: re-encoded to half the size and at crf 40, eight real
# clips differed by at most 2.4 in the mean and 13 at the most, while unlike clips of one kind soon differ by more.
_MOST_MEAN_LEVELS, _MOST_LEVELS = 3.0, 16.0
_MOST_STRETCH = 0.1  # of the duration


@dataclass(frozen=True)
class Fingerprinted:
    """What is compared of a clip, and by what the better one of two is chosen: more pixels, then more frames."""

    file: str
    start: int
    pixels: int
    frames: int
    is_image: bool
    seconds: float
    hash_bits: str
    colours: str


def find_duplicates(clips: Sequence[Fingerprinted], most_bits: int) -> dict[int, int]:
    """For the index of each clip to be dropped, the index of the kept one that it repeats.

    The best clips are kept first; each further one is dropped if its hash differs from a kept one's in at most
    `most_bits` bits and their durations and coarse colours agree. Clips are compared with clips, images with images.
    """
    order = sorted(range(len(clips)), key=lambda index: _rank(clips[index]))
    hashes = np.array([list(bytes.fromhex(clip.hash_bits)) for clip in clips], np.uint8).reshape(
        len(clips), HASH_BITS // 8
    )
    bands = _bands(hashes, most_bits)
    kept: dict[tuple[int, bool, int], list[int]] = defaultdict(list)
    repeated: dict[int, int] = {}
    for index in order:
        keys = [(band, clips[index].is_image, int(value)) for band, value in enumerate(bands[index])]
        candidates = np.unique([other for key in keys for other in kept.get(key, ())]).astype(np.int64)
        match = _nearest(index, candidates, clips, hashes, most_bits)
        if match is not None:
            repeated[index] = match
            continue
        for key in keys:
            kept[key].append(index)
    return repeated


def _confirmed(first: Fingerprinted, second: Fingerprinted) -> bool:
    """True where duration and colours of two clips with like hashes agree as well."""
    if abs(first.seconds - second.seconds) > _MOST_STRETCH * max(first.seconds, second.seconds):
        return False
    pair = [np.frombuffer(bytes.fromhex(clip.colours), np.uint8).astype(np.int16) for clip in (first, second)]
    levels = np.abs(pair[0] - pair[1])
    return float(levels.mean()) <= _MOST_MEAN_LEVELS and float(levels.max()) <= _MOST_LEVELS


def _rank(clip: Fingerprinted) -> tuple[int, int, str, int]:
    return -clip.pixels, -clip.frames, clip.file, clip.start


def _bands(hashes: np.ndarray, most_bits: int) -> np.ndarray:
    """Hashes uint8 [N, 32] as bands [N, B] of equal width, B a power of two above `most_bits`."""
    num_bands = 8
    while num_bands <= most_bits:
        num_bands *= 2
    width_bytes = HASH_BITS // 8 // num_bands
    parts = hashes.reshape(len(hashes), num_bands, width_bytes).astype(np.uint64)
    return parts @ (np.uint64(256) ** np.arange(width_bytes, dtype=np.uint64))


def _nearest(
    index: int, candidates: np.ndarray, clips: Sequence[Fingerprinted], hashes: np.ndarray, most_bits: int
) -> int | None:
    distances = np.bitwise_count(hashes[candidates] ^ hashes[index]).sum(axis=1)
    near = np.flatnonzero(distances <= most_bits)
    for place in near[np.argsort(distances[near], kind="stable")].tolist():
        other = int(candidates[place])
        if _confirmed(clips[index], clips[other]):
            return other
    return None
