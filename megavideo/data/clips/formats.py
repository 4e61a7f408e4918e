"""Which files are read as video and images: by suffix, and inside by a fixed list of formats for each library.

A library that may choose the format by what a file holds would also take scripts that name other files, playlists and
PostScript.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".ts", ".m2ts", ".wmv", ".flv", ".3gp",
     ".y4m", ".h264", ".264", ".h265", ".265", ".hevc")
)  # fmt: skip
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"))
# These hold a still image or an animated one.
ANIMATION_SUFFIXES = frozenset((".gif", ".webp", ".png", ".avif"))
# Read only where pillow-heif is installed, as Pillow's builds lack it.
HEIF_SUFFIXES = frozenset((".heic", ".heif"))
_HEIF_MODULE = "pillow_heif"

# Names of FFmpeg's demuxers.
FFMPEG_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,gif,asf,flv,yuv4mpegpipe,h264,hevc",
    "protocol_whitelist": "file",
}
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "GIF")  # JPEG also reads those of several pictures
# Streams without a container. FFmpeg calls all of them 25 frames a second.
BARE_STREAMS = frozenset(("h264", "hevc", "m4v", "mpegvideo"))

# The most pixels of a frame that are decoded at all: twice of what Pillow warns of, above which it refuses as well.
MOST_PIXELS = 178_956_970

_OTHER_SUFFIXES = frozenset(
    (".jxl", ".jp2", ".psd", ".tga", ".exr", ".svg", ".dng", ".cr2", ".nef", ".arw", ".ppm", ".ogv", ".mts", ".vob",
     ".m2v", ".rm", ".rmvb", ".mxf", ".ivf", ".obu", ".asf", ".f4v", ".yuv")
)  # fmt: skip


def is_media(path: Path) -> bool:
    """True for a file whose suffix names video or an image that can be read here."""
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and _reads_heif())


def is_other_media(path: Path) -> bool:
    """True for a file whose suffix names video or an image that is not read."""
    return path.suffix.lower() in _OTHER_SUFFIXES | HEIF_SUFFIXES and not is_media(path)


def why_not_read(path: Path) -> str:
    """What is said of a file that is no media by its suffix."""
    suffix = path.suffix.lower()
    if suffix in HEIF_SUFFIXES:
        return f"suffix {suffix} is not read without the package pillow-heif"
    return f"suffix {suffix} is not read" if suffix else "a file without a suffix is not read"


def pillow_formats(path: Path) -> tuple[str, ...]:
    """The formats that Pillow may find in a file."""
    if path.suffix.lower() not in HEIF_SUFFIXES:
        return PILLOW_FORMATS
    importlib.import_module(_HEIF_MODULE).register_heif_opener()
    return (*PILLOW_FORMATS, "HEIF")


def _reads_heif() -> bool:
    return importlib.util.find_spec(_HEIF_MODULE) is not None
