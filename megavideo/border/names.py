"""Names that come from outside, before they are joined to a path."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from megavideo.border.refused import Refused

_LONGEST_SHOWN = 200
_LONGEST_PART_BYTES = 255  # of Linux's file systems
_LONGEST_BYTES = 1024  # of a key of S3


def inside_name(name: str) -> str:
    """`name`, if it is a relative POSIX path in its normal form without `..`, and not too long; else Refused."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or str(path) != name or "\0" in name:
        raise Refused(f"{shown(name)} is no relative name that stays inside")
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in path.parts]
    if max(sizes) > _LONGEST_PART_BYTES or sum(sizes) + len(sizes) - 1 > _LONGEST_BYTES:
        raise Refused(f"{shown(name)} is longer than names of files can be")
    return name


def stored_name(name: str) -> str:
    """The same for a file that no person named: there nothing breaks a line of a log."""
    if not inside_name(name).isprintable():
        raise Refused(f"{shown(name)} holds characters that cannot be printed")
    return name


def plain_name(name: str) -> str:
    """`name`, if it is such a name without any directory; else Refused."""
    if "/" in stored_name(name):
        raise Refused(f"{shown(name)} is no name of a file alone")
    return name


def beneath(root: Path, name: str) -> Path:
    """The path of `name` under `root`; Refused where it leaves that, by its parts or by links."""
    path = root / inside_name(name)
    _check_inside(root, path, path)
    return path


def entry_beneath(root: Path, name: str) -> Path:
    """The same for an entry that is replaced or removed: its directory must be inside, and a link is not followed."""
    path = root / inside_name(name)
    _check_inside(root, path.parent, path)
    return path


def leads_outside(root: Path, path: Path) -> bool:
    """Whether links lead `path`, which lies under `root`, to a place that is not."""
    real_root, real = os.path.realpath(root), os.path.realpath(path)
    return real != real_root and not real.startswith(real_root.rstrip("/") + "/")


def shown(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """A text from outside as a message shows it: quoted, without control characters, and not long."""
    quoted = repr(text[:longest]).encode("utf-8", "backslashreplace").decode("utf-8")
    return quoted if len(text) <= longest else f"{quoted}... ({len(text)} characters)"


def _check_inside(root: Path, place: Path, path: Path) -> None:
    if leads_outside(root, place):
        raise Refused(f"{shown(str(path))} is a link that leads outside of {root}, or lies behind one")
