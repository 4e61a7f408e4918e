"""From the size a user asks for to the latent that holds it."""

from __future__ import annotations

from megavideo.types import Grid


def covering_latent(
    pixels: tuple[int, int, int], time_ratio: int, space_ratio: int, patch: tuple[int, int, int]
) -> Grid:
    """The smallest latent whose video has at least (frames, height, width) `pixels`.

    The first frame stands alone, each further latent frame holds `time_ratio`; every size divides by the patch.
    """
    frames, height, width = pixels
    latent_frames = 1 + -(-(frames - 1) // time_ratio)
    return Grid(
        _up(latent_frames, patch[0]),
        _up(-(-height // space_ratio), patch[1]),
        _up(-(-width // space_ratio), patch[2]),
    )


def _up(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
