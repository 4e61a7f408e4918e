"""Clips that lie in a store: copied one at a time to a folder of this machine, and removed after use."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from megavideo.config.schema.clip_store import ClipStoreConfig
from megavideo.data.clips.clip_file import clip_file
from megavideo.data.storage.locked_folder import locked_folder
from megavideo.data.storage.open import is_object_store
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.storage.s3 import S3Storage
from megavideo.errors import ConfigError, DataError

_CACHE_PREFIX = ".clips-"


class CacheError(DataError):
    """A folder for copies that cannot be written: no clip is to blame, and none is dropped for it."""


@dataclass(frozen=True)
class StoredClip:
    """A clip's copy at `path`, of the version that was read."""

    path: Path
    version: str


@dataclass(frozen=True)
class StoredClips:
    """The clips of a store, and the folder for copies of them; it can be sent to other processes of this machine."""

    storage: S3Storage
    cache: Path
    most_bytes: int

    @property
    def uri(self) -> str:
        """Where they lie."""
        return self.storage.uri

    @contextmanager
    def fetched(self, file: str) -> Iterator[StoredClip]:
        """A clip as a local file that lasts as long as the block.

        Raises DataError where it cannot be read or is too large, StoreUnreachable where the store stays away, and
        CacheError where the copy cannot be written.
        """
        self._remove_of_the_dead()
        name = f"{os.getpid()}-{threading.get_native_id()}{PurePosixPath(file).suffix.lower()}"
        path = self.cache / name
        try:
            try:
                with path.open("wb") as copy:
                    entry = self.storage.fetch(file, copy, self.most_bytes)
            except OSError as error:
                raise self._unwritable(error) from error
            yield StoredClip(path, entry.version)
        finally:
            path.unlink(missing_ok=True)

    def _remove_of_the_dead(self) -> None:
        """Remove copies of processes that were killed; there are as many files here as processes and their threads."""
        for path in self.cache.iterdir():
            owner = path.name.partition("-")[0]
            if owner.isdecimal() and not Path("/proc", owner).exists():
                path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> CacheError:
        return CacheError(
            f"{self.cache}: copies of clips cannot be written there ({error.strerror}). Remedy: make room for "
            f"one clip of each process, or give another folder with store.cache="
        )


ClipPlace = Path | StoredClips  # where clips lie: a folder, or a store


@contextmanager
def stored_clips(uri: str, store: ClipStoreConfig) -> Iterator[StoredClips]:
    """The clips at the `s3://` address `uri`. The folder for copies is this process's and its workers', and is removed.

    Raises ConfigError where no such folder can be made, DataError for a store that is none.
    """
    storage = S3Storage(uri, RetryPolicy(total_seconds=store.retry_seconds))
    home = Path(tempfile.gettempdir() if store.cache is None else store.cache).expanduser()
    folder = locked_folder(home, _CACHE_PREFIX)
    try:
        cache = folder.__enter__()
    except OSError as error:
        raise ConfigError(
            "store.cache", store.cache or str(home), f"cannot be written ({error.strerror})", "give another folder"
        ) from error
    try:
        yield StoredClips(storage, cache, store.max_bytes)
    finally:
        folder.__exit__(None, None, None)


@contextmanager
def clip_place(root: str, store: ClipStoreConfig) -> Iterator[ClipPlace]:
    """Where clips lie whose root is a folder or an `s3://` address."""
    if not is_object_store(root):
        yield Path(root)
        return
    with stored_clips(root, store) as place:
        yield place


@contextmanager
def opened_clip(place: ClipPlace, file: str) -> Iterator[Path]:
    """The file of a clip to be read: in place, or of a store a copy that goes again. DataError where it is none."""
    if isinstance(place, Path):
        yield clip_file(place, file)
        return
    with place.fetched(file) as copy:
        yield copy.path


def clip_address(place: ClipPlace, file: str) -> str:
    """What messages call a clip."""
    return str(place / file) if isinstance(place, Path) else f"{place.uri}/{file}"
