"""Settings of how `megavideo ingest` cuts videos into clips and which clips it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class CutsConfig:
    """Scene cuts: PySceneDetect's adaptive detector, on frames that do not repeat the one before.

    A frame begins a new shot where its change in colour and brightness is at least `change` (mean of hue, saturation
    and value, 0..255) and `ratio` times that of the frames around it. With `transitions`, frames that dissolve or fade
    from one shot into the next are left out. A step of the clock of more than `hole_seconds`, and of four times those
    before it, ends a clip; null lets holes be. `enabled=false` keeps each video in one piece.
    """

    enabled: bool = True
    ratio: float = setting(3.0, minimum=1.0)
    change: float = setting(15.0, minimum=0.0, maximum=255.0)
    transitions: bool = True
    hole_seconds: float | None = setting(0.5, above=0.0)


@dataclass(frozen=True, kw_only=True)
class FiltersConfig:
    """Which clips are kept (group `filters`); null leaves a threshold out, and its score is recorded all the same.

    Shots longer than `max_seconds` are cut into pieces of equally many frames, those shorter than `min_seconds`
    dropped. `letterbox` cuts black bars away. `min_change` is for static clips: the change over time of the 8 x 8 block
    that changes most, in levels of 255. `min_motion` and `max_motion` bound the optical flow, in % of the picture's
    diagonal a second; `min_sharpness` the contrast of fine detail, in levels of 255; `min_aesthetic` a statistic of
    colour, contrast and detail, 0..1. Images pass all that concerns time. `duplicate_bits` drops a clip whose
    perceptual hash of 256 bits differs from a kept one's in so many bits or fewer. `own` names scores of one's own with
    their threshold, as `mypackage.module.function>=0.5`, or without one to record the score only; when the file of its
    module changes, clips are measured anew. What has frames of more than `max_pixels` is dropped before any of them is
    decoded, which would take some 20 bytes a pixel. HDR video is mapped to SDR and interlaced video made whole, or
    dropped with `hdr=drop` and `interlaced=drop`.
    """

    min_seconds: float = setting(0.1, minimum=0.0)
    max_seconds: float | None = setting(60.0, minimum=0.5)
    letterbox: bool = True
    min_change: float | None = setting(1.5, minimum=0.0)
    min_motion: float | None = setting(None, minimum=0.0)
    max_motion: float | None = setting(None, minimum=0.0)
    min_sharpness: float | None = setting(None, minimum=0.0)
    min_aesthetic: float | None = setting(None, minimum=0.0, maximum=1.0)
    duplicate_bits: int | None = setting(12, minimum=0, maximum=31)
    own: tuple[str, ...] = ()
    max_pixels: int = setting(67108864, minimum=256, maximum=178956970)
    hdr: Literal["map", "drop"] = "map"
    interlaced: Literal["deinterlace", "drop"] = "deinterlace"
