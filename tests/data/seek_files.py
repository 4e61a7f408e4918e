"""Small videos in many codecs and containers, with true indexes and with damaged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path

import av
import numpy as np
import pytest

FRAMES = 56
_KEY_EVERY = 18

# Sizes that the codec has, where it does not have all: height and width.
_SIZES = {"h263": (96, 128), "h261": (144, 176)}
_KEYS_ONLY = ("mjpeg", "prores_ks")
_OPTIONS = {
    "libx264": {"preset": "ultrafast", "bf": "2", "x264-params": "scenecut=0:open-gop=1"},
    "libx265": {"x265-params": f"keyint={_KEY_EVERY}:bframes=2:scenecut=0:log-level=none"},
    "libsvtav1": {"preset": "12"},
    "libvpx": {"deadline": "realtime"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "mpeg4": {"bf": "2"},
    "mpeg2video": {"bf": "2"},
    "snow": {"strict": "-2"},
}
# Codecs of which a decoder that starts on any frame gives a picture, right or not, come first.
CONTAINERS = {
    "mpeg4": ("mp4", "mkv", "avi", "ts", "mpg", "3gp"),
    "h263": ("3gp", "mov", "avi", "wmv"),
    "h263p": ("avi",),
    "h261": ("avi",),
    "flv": ("flv", "avi"),
    "msmpeg4": ("mkv", "avi", "wmv"),
    "wmv2": ("wmv", "avi"),
    "cinepak": ("mov", "avi"),
    "qtrle": ("mov",),
    "libx264": ("mp4", "mov", "mkv", "avi", "ts", "flv", "mpg"),
    "libx265": ("mp4", "mkv", "ts", "mpg"),
    "libvpx": ("webm", "avi"),
    "libvpx-vp9": ("webm", "mp4"),
    "libsvtav1": ("mkv", "mp4"),
    "mpeg2video": ("mpg", "ts", "mkv", "mp4"),
    "mpeg1video": ("mpg", "ts", "avi"),
    "ffv1": ("mkv", "avi"),
    "snow": ("avi",),
    "mjpeg": ("avi", "mov"),
    "prores_ks": ("mov",),
}
ALL = [(codec, suffix) for codec, suffixes in CONTAINERS.items() for suffix in suffixes]
# Each codec once, and each container with what it is hardest with.
SOME = [
    ("mpeg4", "mp4"), ("mpeg4", "mkv"), ("mpeg4", "ts"), ("h263", "3gp"), ("flv", "flv"), ("msmpeg4", "avi"),
    ("wmv2", "wmv"), ("cinepak", "mov"), ("qtrle", "mov"), ("libx264", "mpg"), ("libx265", "mpg"), ("libvpx", "webm"),
    ("libsvtav1", "mkv"), ("mpeg2video", "mpg"), ("mpeg1video", "mpg"), ("ffv1", "avi"),
    ("libx264", "avi"), ("mjpeg", "avi"),
]  # fmt: skip


def moving_texture(height: int, width: int, frames: int) -> Iterator[np.ndarray]:
    """Smooth random colours that move two pixels a frame, uint8 [H, W, 3]: no frame is like one before it."""
    cells = np.random.default_rng(0).integers(30, 255, (height // 8 + 6, (width + 2 * frames) // 8 + 1, 3))
    wide = np.kron(cells, np.ones((8, 8, 1))).astype(np.uint8)
    for time in range(frames):
        yield np.ascontiguousarray(wide[time // 3 % 40 :][:height, 2 * time : 2 * time + width])


def write_video_file(path: Path, codec: str, all_keys: bool = False, frames: int = FRAMES, keys_later: int = 0) -> Path:
    """A video at 25 frames a second, with a key frame every 18.

    `all_keys` makes its index call all so, and `keys_later` those that come so many packets after the true ones.
    """
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    height, width = _SIZES.get(codec, (48, 64))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = width, height
        formats = [pixels.name for pixels in stream.codec_context.codec.video_formats or ()]
        wanted = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.pix_fmt = wanted if not formats or wanted in formats else formats[0]
        keys = {} if codec in _KEYS_ONLY else {"g": str(_KEY_EVERY)}
        stream.options = keys | _OPTIONS.get(codec, {})
        calls_keys = count(-keys_later) if keys_later else repeat(0) if all_keys else None
        for pixels in moving_texture(height, width, frames):
            _mux(container, stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")), calls_keys)
        _mux(container, stream.encode(), calls_keys)
    return path


def drop_sync_samples(path: Path) -> Path:
    """Make an mp4's table of sync samples unknown to readers: without one, every sample is a key frame."""
    data = path.read_bytes()
    assert data.count(b"stss") == 1
    path.write_bytes(data.replace(b"stss", b"free"))
    return path


def call_samples_sync(path: Path, samples: list[int] | None) -> Path:
    """Write other numbers, from 1 and as many as there are, into the table of sync samples of an mp4 or 3gp.

    None gives every seventh.
    """
    data = bytearray(path.read_bytes())
    begin = data.index(b"stss") + 8
    num_samples = int.from_bytes(data[begin : begin + 4])
    samples = list(range(1, 1 + 7 * num_samples, 7)) if samples is None else samples
    assert len(samples) == num_samples
    for number, sample in enumerate(samples):
        data[begin + 4 + 4 * number : begin + 8 + 4 * number] = sample.to_bytes(4)
    path.write_bytes(bytes(data))
    return path


def rename_index(path: Path, name: bytes, other: bytes) -> Path:
    """Make an index unknown to readers, by another name of it."""
    data = path.read_bytes()
    assert name in data
    path.write_bytes(data.replace(name, other))
    return path


def falsify_cues(path: Path) -> Path:
    """Write earlier times into the cues of a Matroska file: they lead to clusters that begin after the time sought."""
    data = bytearray(path.read_bytes())
    begin = data.rindex(CUES) + len(CUES)
    place = begin
    while (place := data.find(b"\xb3", place)) >= 0:  # CueTime, its length as one byte, and the time
        length = data[place + 1] & 0x7F
        if data[place + 1] & 0x80 and length <= 3:
            value = place + 2
            time = int.from_bytes(data[value : value + length]) // 2
            data[value : value + length] = time.to_bytes(length)
        place += 1
    assert bytes(data) != path.read_bytes()
    path.write_bytes(bytes(data))
    return path


def damaged_files(folder: Path, codec: str, suffix: str) -> Iterator[Path]:
    """A video with its true index, and with each kind of damage that its container can have."""
    yield write_video_file(folder / f"true.{suffix}", codec)
    yield write_video_file(folder / f"all.{suffix}", codec, all_keys=True)
    yield write_video_file(folder / f"later.{suffix}", codec, keys_later=5)
    for name, damage in _DAMAGES.items():
        path = write_video_file(folder / f"{name}.{suffix}", codec)
        data = path.read_bytes()
        if suffix in damage.suffixes and damage.mark in data:
            yield damage.make(path)


@dataclass(frozen=True)
class _Damage:
    suffixes: tuple[str, ...]
    mark: bytes
    make: Callable[[Path], Path]


CUES = b"\x1c\x53\xbb\x6b"
_MP4 = ("mp4", "mov", "3gp")
_DAMAGES = {
    "no_sync": _Damage(_MP4, b"stss", drop_sync_samples),
    "other_sync": _Damage(_MP4, b"stss", lambda path: call_samples_sync(path, None)),
    "no_cues": _Damage(("mkv", "webm"), CUES, lambda path: rename_index(path, CUES, b"\x1c\x53\xbb\x6a")),
    "other_cues": _Damage(("mkv", "webm"), CUES, falsify_cues),
    "no_index": _Damage(("avi",), b"idx1", lambda path: rename_index(path, b"idx1", b"JUNK")),
}


def _mux(container: av.container.OutputContainer, packets: list[av.Packet], calls_keys: Iterator[int] | None) -> None:
    for packet in packets:
        if calls_keys is not None:
            packet.is_keyframe = next(calls_keys) % _KEY_EVERY == 0
        container.mux(packet)
