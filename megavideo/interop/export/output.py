"""The place of an export: made beside it under another name, with room on the disk, and renamed when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megavideo.checkpoint.folder_place import flush_folder, write_flushed
from megavideo.data.storage.files import writing
from megavideo.errors import ConfigError, DataError
from megavideo.observe.progress import format_bytes
from megavideo.observe.whole_file import TEMPORARY_PREFIX


@contextmanager
def making(out: Path, num_bytes: int, *, is_file: bool) -> Iterator[Path]:
    """Give a hidden folder beside `out`, and rename it to `out` if the block ends without error, else remove it.

    With `is_file` what is renamed is the file called as `out` in it. Nobody else works on `out` meanwhile: what an
    export that was killed has left is removed first. Raises ConfigError where `out` is there already, DataError
    where the disk has no room for `num_bytes` or refuses them.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError("out", str(out), "is there already", "give another place, or remove it")
    working = out.parent / f"{TEMPORARY_PREFIX}{out.name}"
    try:
        with writing(out):
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir(parents=True)
            _check_room(out, num_bytes)
            yield working
            made = working / out.name if is_file else working
            for folder in (made, *made.rglob("*")):
                if folder.is_dir() and not folder.is_symlink():
                    flush_folder(folder)
            os.replace(made, out)
            flush_folder(out.parent)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, object]) -> int:
    """Write a JSON file as diffusers spells its own; its size."""
    text = (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
    write_flushed(path, text)
    return len(text)


def _check_room(out: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if num_bytes > free:
        raise DataError(
            f"{out}: the export takes {format_bytes(num_bytes)}, and {format_bytes(free)} are free there. "
            "Remedy: make room, or give another place as out="
        )
