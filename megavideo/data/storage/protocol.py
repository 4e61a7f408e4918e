"""What every place of files can do, be it a folder or an object store.

Names are relative POSIX paths ("encoders/pca.json").
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from megavideo.data.storage.retry import RetryPolicy


class Storage(Protocol):
    """A flat set of named byte strings under one URI."""

    uri: str
    retry: RetryPolicy
    retries: int  # further attempts that were needed so far, in this process

    def read_bytes(self, name: str) -> bytes:
        """The whole content of `name`; DataError where it is missing or unreadable."""
        ...

    def write_bytes(self, name: str, data: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Write or replace `name` as a whole; `on_progress` is called now and then while bytes go there."""
        ...

    def exists(self, name: str) -> bool:
        """True where `name` can be read; DataError where the store itself cannot be reached."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, sorted."""
        ...

    def copy_to(self, name: str, file: BinaryIO, on_progress: Callable[[], None] = lambda: None) -> None:
        """Write the content of `name`, which is known to be there, into `file` from its beginning.

        `on_progress` is called now and then.
        """
        ...

    def download(self, name: str, path: Path) -> None:
        """Copy `name` to the local file `path`, atomically."""
        ...

    def upload(self, path: Path, name: str, on_progress: Callable[[], None] | None = None) -> None:
        """Copy the local file `path` to `name`; `on_progress` as for `write_bytes`."""
        ...

    def delete(self, name: str) -> None:
        """Remove `name`; a missing one is no error."""
        ...
