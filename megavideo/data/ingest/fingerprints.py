"""What is compared of all clips in the search for near-duplicates, as compact as it can be."""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megavideo.data.ingest.fingerprint import COLOURS_BYTES, HASH_BITS


class Fingerprints:
    """Hashes, sizes and durations of clips in memory, 49 bytes each, and their colours in a file of `folder`.

    Clips are numbered as they are added: in the order of files and frames, on which the outcome then depends alone.
    """

    def __init__(self, folder: Path) -> None:
        self._hashes = bytearray()
        self._pixels = array("I")
        self._frames = array("I")
        self._seconds = array("d")
        self._images = bytearray()
        self._colours = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`

    def add(self, hash_bits: str, colours: str, pixels: int, frames: int, seconds: float | None) -> None:
        """Add a clip: hash and colours as `fingerprint` gives them, its size and duration; an image has none."""
        self._hashes += bytes.fromhex(hash_bits)
        self._colours.write(bytes.fromhex(colours))
        self._pixels.append(pixels)
        self._frames.append(frames)
        self._seconds.append(0.0 if seconds is None else seconds)
        self._images.append(seconds is None)

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def hashes(self) -> npt.NDArray[np.uint8]:
        """Perceptual hashes, uint8 [N, 32]."""
        return np.frombuffer(self._hashes, np.uint8).reshape(len(self), HASH_BITS // 8)

    @property
    def pixels(self) -> npt.NDArray[np.int64]:
        """Pixels of a frame, int64 [N]."""
        return np.array(self._pixels, np.int64)

    @property
    def frames(self) -> npt.NDArray[np.int64]:
        """Numbers of frames, int64 [N]."""
        return np.array(self._frames, np.int64)

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """Durations, float64 [N]; 0 of images."""
        return np.frombuffer(self._seconds, np.float64)

    @property
    def is_image(self) -> npt.NDArray[np.bool_]:
        """True for images, bool [N]."""
        return np.frombuffer(self._images, np.bool_)

    def colours(self, index: int) -> npt.NDArray[np.int16]:
        """The coarse colours of a clip, int16 [768]."""
        self._colours.flush()
        data = os.pread(self._colours.fileno(), COLOURS_BYTES, index * COLOURS_BYTES)
        return np.frombuffer(data, np.uint8).astype(np.int16)

    def close(self) -> None:
        """Remove the file of colours."""
        self._colours.close()
