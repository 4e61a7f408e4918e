"""Videos and pictures from outside, opened: the one place where PyAV and Pillow are handed a file to read."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from megavideo.border.files import check_file, open_file
from megavideo.border.refused import Refused

if TYPE_CHECKING:
    from PIL import Image


@contextmanager
def opened_video(path: str | os.PathLike[str], options: Mapping[str, str]) -> Iterator[Any]:
    """The PyAV container of a regular file; whatever FFmpeg says of it in the block becomes Refused.

    `options` are FFmpeg's; a list of formats belongs among them. Raises FileNotFoundError and PermissionError as the
    system does.
    """
    import av

    check_file(path)
    try:
        with av.open(os.fspath(path), options=dict(options), metadata_errors="replace") as container:
            yield container
    except (FileNotFoundError, PermissionError):
        raise
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"damaged or not a video ({reason})") from error


@contextmanager
def opened_image(path: str | os.PathLike[str], formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The Pillow image of a regular file of one of `formats`; whatever Pillow says in the block becomes Refused.

    Other formats are not tried: for some Pillow starts another program. Raises FileNotFoundError and PermissionError as
    the system does.
    """
    from PIL import Image, UnidentifiedImageError

    # what its decoders raise on damaged files, beside what it promises
    faults = (
        UnidentifiedImageError, OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, OverflowError,
        EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
    )  # fmt: skip
    try:
        with open_file(path) as file, Image.open(file, formats=formats) as image:
            yield image
    except (FileNotFoundError, PermissionError, Refused):
        raise
    except faults as error:
        raise Refused(f"damaged or not an image ({error})") from error
