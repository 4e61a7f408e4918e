"""Where datasets live: a local folder or an object store, behind one small protocol.

Names are relative POSIX paths ("encoders/pca.json"). A local write is atomic: it goes to a temporary file in the same
folder, is flushed to disk and renamed, so that a reader sees the old file or the new one and never a part.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from megavideo.errors import DataError

_TEMPORARY_PREFIX = ".writing-"


class Storage(Protocol):
    """A flat set of named byte strings under one URI."""

    uri: str

    def read_bytes(self, name: str) -> bytes:
        """The whole content of `name`; DataError where it is missing or unreadable."""
        ...

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write or replace `name` as a whole."""
        ...

    def exists(self, name: str) -> bool:
        """True where `name` can be read; DataError where the store itself cannot be reached."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, sorted."""
        ...

    def download(self, name: str, path: Path) -> None:
        """Copy `name` to the local file `path`, atomically."""
        ...

    def upload(self, path: Path, name: str) -> None:
        """Copy the local file `path` to `name`."""
        ...

    def delete(self, name: str) -> None:
        """Remove `name`; a missing one is no error."""
        ...


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; flush and rename it to `path` if the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


class LocalStorage:
    """A folder. It need not exist before the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = str(folder)

    def _path(self, name: str) -> Path:
        return self.folder / _checked(name)

    def read_bytes(self, name: str) -> bytes:
        """The content of the file; DataError where it cannot be read."""
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            raise DataError(f"{self._path(name)}: cannot be read ({error.strerror}). Remedy: check the path") from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the file atomically, making its folder; DataError where the disk refuses."""
        try:
            write_file(self._path(name), data)
        except OSError as error:
            raise _cannot_write(self._path(name), error) from error

    def exists(self, name: str) -> bool:
        """True where the file exists."""
        return self._path(name).is_file()

    def list(self, prefix: str = "") -> list[str]:
        """Files under the folder, without those still being written."""
        if not self.folder.is_dir():
            return []
        files = (path for path in self.folder.rglob("*") if path.is_file())
        names = (p.relative_to(self.folder).as_posix() for p in files if not p.name.startswith(_TEMPORARY_PREFIX))
        return sorted(name for name in names if name.startswith(prefix))

    def download(self, name: str, path: Path) -> None:
        """Copy the file to `path`."""
        if not self.exists(name):
            raise DataError(f"{self._path(name)}: no such file. Remedy: check the path")
        with replacing(path) as temporary:
            shutil.copyfile(self._path(name), temporary)

    def upload(self, path: Path, name: str) -> None:
        """Copy `path` into the folder."""
        try:
            with replacing(self._path(name)) as temporary:
                shutil.copyfile(path, temporary)
        except OSError as error:
            raise _cannot_write(self._path(name), error) from error

    def delete(self, name: str) -> None:
        """Remove the file if it is there."""
        self._path(name).unlink(missing_ok=True)


class S3Storage:
    """A prefix in an S3-compatible store, reached with boto3.

    Honours S3_ENDPOINT_URL and the usual AWS_* variables. The connection belongs to one process: a forked or
    unpickled copy opens its own, because a connection shared over a fork mixes up answers.
    """

    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise DataError(f"{uri}: no bucket is named. Remedy: write it as s3://bucket/prefix")
        self.uri = uri.rstrip("/")
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self._client: Any = None
        self._client_pid = -1

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the connection."""
        return {**self.__dict__, "_client": None}

    @property
    def _s3(self) -> Any:
        if self._client is None or self._client_pid != os.getpid():
            import boto3
            from botocore.config import Config

            # Checksums in trailers are newer than many S3-compatible stores; shards carry their own hashes.
            config = Config(
                retries={"max_attempts": 6, "mode": "standard"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            # A session of its own: the shared default one is not made for threads and keeps old credentials.
            session = boto3.session.Session()
            self._client = session.client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL") or None, config=config)
            self._client_pid = os.getpid()
        return self._client

    def _key(self, name: str) -> str:
        name = _checked(name)
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError) as error:
            code = _error_code(error)
            raise DataError(
                f"{self.uri}/{name}: {error}. Remedy: "
                + _REMEDIES.get(code, "check S3_ENDPOINT_URL, the AWS_* variables and that the bucket exists")
            ) from error

    def read_bytes(self, name: str) -> bytes:
        """The content of the object; DataError where it cannot be read."""
        with self._reported(name):
            data: bytes = self._s3.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
        return data

    def write_bytes(self, name: str, data: bytes) -> None:
        """Put the object; a store shows it whole or not at all."""
        with self._reported(name):
            self._s3.put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

    def exists(self, name: str) -> bool:
        """True where the object exists; DataError where the store or bucket cannot be reached."""
        from botocore.exceptions import ClientError

        with self._reported(name):
            try:
                self._s3.head_object(Bucket=self.bucket, Key=self._key(name))
            except ClientError as error:
                if _error_code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
                # A missing bucket answers 404 as well; asking for it tells the two apart.
                self._s3.head_bucket(Bucket=self.bucket)
                return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        """Names of the objects under the prefix."""
        root = f"{self.prefix}/" if self.prefix else ""
        names: list[str] = []
        with self._reported(prefix):
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=root + prefix):
                names += [item["Key"].removeprefix(root) for item in page.get("Contents", [])]
        return sorted(names)

    def download(self, name: str, path: Path) -> None:
        """Copy the object to `path`."""
        with self._reported(name), replacing(path) as temporary:
            self._s3.download_file(self.bucket, self._key(name), str(temporary))

    def upload(self, path: Path, name: str) -> None:
        """Copy `path` to the object."""
        with self._reported(name):
            self._s3.upload_file(str(path), self.bucket, self._key(name))

    def delete(self, name: str) -> None:
        """Remove the object."""
        with self._reported(name):
            self._s3.delete_object(Bucket=self.bucket, Key=self._key(name))


_REMEDIES = {
    "404": "check the name; the bucket or the object is not there",
    "NoSuchBucket": "make the bucket first, or name another",
    "NoSuchKey": "check the name, or encode the dataset first",
    "403": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may use this bucket",
}


def is_object_store(uri: str) -> bool:
    """True for a URI that names an object store, not a folder."""
    return "://" in uri and not uri.startswith("file://")


def open_storage(uri: str) -> Storage:
    """The storage at `uri`: a folder, `file:///folder` or `s3://bucket/prefix`. Opens no connection yet."""
    if uri.startswith("s3://"):
        return S3Storage(uri)
    if is_object_store(uri):
        scheme = uri.split("://")[0]
        raise DataError(f"{uri}: storage '{scheme}' is not supported. Remedy: give a folder or s3://bucket/prefix")
    return LocalStorage(Path(uri.removeprefix("file://")).expanduser())


def download_all(storage: Storage, prefix: str, folder: Path) -> None:
    """Copy every name under `prefix` into `folder`, leaving `prefix` off the names."""
    for name in storage.list(prefix):
        storage.download(name, folder / name.removeprefix(prefix))


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"{name!r}: a name in a storage is relative and stays inside it. Remedy: correct the name")
    return str(path)


def _error_code(error: Exception) -> str:
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror}). Remedy: check rights and free space")
