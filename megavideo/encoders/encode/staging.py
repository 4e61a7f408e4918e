"""Folders for what is not whole yet; those whose owners were killed are removed by the next one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.locked_folder import is_old, locked_folder
from megavideo.data.storage.protocol import Storage
from megavideo.errors import DataError
from megavideo.observe.whole_file import TEMPORARY_PREFIX

_PREFIX = ".encode-"


@contextmanager
def staging_folder(storage: Storage) -> Iterator[Path]:
    """A folder that is locked while this process lives and removed afterwards.

    A local place stages in itself, so that its own disk must hold the shards and no other. Raises DataError where no
    folder can be made.
    """
    home = storage.folder if isinstance(storage, LocalStorage) else Path(tempfile.gettempdir())
    is_new = not home.exists()
    with ExitStack() as stack:
        if is_new:
            stack.callback(_remove_if_empty, home)
        try:
            folder = stack.enter_context(locked_folder(home, _PREFIX))
            if isinstance(storage, LocalStorage):
                _remove_unwritten(home)
        except OSError as error:
            raise DataError(
                f"{home}: cannot be written ({error.strerror}). Remedy: check rights and free space"
            ) from error
        yield folder


def _remove_if_empty(home: Path) -> None:
    if home.is_dir() and not any(home.iterdir()):
        home.rmdir()


def _remove_unwritten(home: Path) -> None:
    """Remove what is left of files whose writers were killed."""
    for path in home.rglob(f"{TEMPORARY_PREFIX}*"):
        if is_old(path):
            path.unlink(missing_ok=True)
