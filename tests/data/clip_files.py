"""Small clips made on the spot: moving squares, written with PyAV or Pillow."""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving_square(frames: int, height: int, width: int, colour: tuple[int, int, int] = (220, 40, 30)) -> np.ndarray:
    """A coloured square that moves right by two pixels a frame on grey, uint8 [T, H, W, 3]."""
    side = max(4, min(height, width) // 3)
    video = np.full((frames, height, width, 3), 90, np.uint8)
    for index in range(frames):
        left = (2 * index) % max(1, width - side)
        top = height // 4
        video[index, top : top + side, left : left + side] = colour
    return video


def write_clip(
    path: Path,
    frames: np.ndarray,
    fps: int = 8,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
) -> Path:
    """Encode frames; `times` are timestamps in milliseconds, for a variable rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        if codec == "libx264":
            stream.options = {"crf": "8"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn_header(path: Path, quarter_turns: int) -> Path:
    """Set the track's display matrix of an mp4 to `quarter_turns` clockwise."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 65536
    data[at : at + 36] = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def write_captions(folder: Path, captions: dict[str, str]) -> Path:
    """Write captions.jsonl."""
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps({"file": file, "caption": text}) + "\n" for file, text in captions.items()))
    return path
