"""The file of a clip, before anything in it is read."""

from __future__ import annotations

from pathlib import Path

from megavideo.border.files import check_file
from megavideo.border.names import beneath
from megavideo.border.refused import Refused
from megavideo.errors import DataError


def clip_file(root: Path, file: str) -> Path:
    """The path of a clip: a regular file under `root`, also after links. Raises DataError where it is none."""
    path = root / file
    try:
        check_file(beneath(root, file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except Refused as error:
        raise DataError(f"{path}: is not read: {error}") from error
    return path
