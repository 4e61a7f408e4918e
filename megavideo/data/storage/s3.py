"""An S3-compatible object store as a storage: reads and writes that wait out an outage and end in a clear error."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from megavideo.border.secrets import holds_secret, without_secrets
from megavideo.data.storage.entry import Entry
from megavideo.data.storage.files import checked_name, writing
from megavideo.data.storage.retry import RetryPolicy, retrying
from megavideo.data.storage.s3_errors import (
    StalledError,
    TruncatedError,
    is_missing,
    patience,
    patience_for_known,
    remedy,
)
from megavideo.errors import DataError, StoreUnreachable
from megavideo.observe.whole_file import replacing

Answer = TypeVar("Answer")
Patience = Callable[[Exception], float]
_ENDPOINT = "S3_ENDPOINT_URL"
_CHUNK_BYTES = 1 << 20
_WRITE_SECONDS = 60.0  # a store may take long to answer for what it has to keep
_LEAST_BYTES_PER_SECOND = 1024
_MOST_PUT_BYTES = 5 << 30  # in one request, by S3's own rule


class S3Storage:
    """A prefix in an S3-compatible store, reached with boto3.

    Honours S3_ENDPOINT_URL and the usual AWS_* variables. What may pass is tried again as `retry` says; then a
    StoreUnreachable, or at once for what cannot pass a DataError, names object, cause and remedy. The connection
    belongs to one process: a forked or unpickled copy opens its own, because a connection shared over a fork mixes up
    answers.
    """

    def __init__(self, uri: str, retry: RetryPolicy | None = None) -> None:
        if holds_secret(uri):
            raise DataError(
                f"{without_secrets(uri)}: an address with credentials. Remedy: write it as s3://bucket/prefix, and "
                "give the keys as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise DataError(f"{uri}: no bucket is named. Remedy: write it as s3://bucket/prefix")
        self.uri = uri.rstrip("/")
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.retry = retry or RetryPolicy()
        self.retries = 0
        self._clients: dict[tuple[int, float], Any] = {}  # by process and patience

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the connections."""
        return {**self.__dict__, "_clients": {}}

    def _client(self, read_seconds: float) -> Any:
        key = (os.getpid(), read_seconds)
        if key not in self._clients:
            import boto3
            from botocore.config import Config

            # Checksums in trailers are newer than many S3-compatible stores; shards carry their own hashes.
            config = Config(
                connect_timeout=self.retry.stall_seconds,
                read_timeout=read_seconds,
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            # A session of its own: the shared default one is not made for threads and keeps old credentials.
            session = boto3.session.Session()
            endpoint = _endpoint(os.environ)
            try:
                # clients of a process forked from are kept: their sockets are its, and not closed here
                self._clients[key] = session.client("s3", endpoint_url=endpoint, config=config)
            except ValueError as error:
                raise DataError(
                    f"{self.uri}: {without_secrets(str(error))}. Remedy: write S3_ENDPOINT_URL as http://host:port"
                ) from None
        return self._clients[key]

    def _key(self, name: str) -> str:
        name = checked_name(name)
        return f"{self.prefix}/{name}" if self.prefix else name

    def _call(
        self, name: str, attempt: Callable[[Any], Answer], patience: Patience = patience, writes: bool = False
    ) -> Answer:
        """The answer of `attempt`, which is given a client."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        def count() -> None:
            self.retries += 1

        begin = time.monotonic()
        try:
            client = self._client(_WRITE_SECONDS if writes else self.retry.stall_seconds)
            return retrying(lambda: attempt(client), patience, self.retry, count, f"{self.uri}/{name}")
        except (
            Boto3Error, BotoCoreError, ClientError, ResponseParserError, HTTPError, StalledError, TruncatedError,
        ) as error:  # fmt: skip
            reason = str(error) or type(error).__name__
            waited = f" (given up after {time.monotonic() - begin:.0f} s)" if patience(error) else ""
            # the chain is cut: an underlying message is not free of secrets
            text = f"{self.uri}/{name}: {reason}{waited}. Remedy: {remedy(error)}"
            kind = StoreUnreachable if patience(error) == float("inf") else DataError
            raise kind(without_secrets(text)) from None

    def read_bytes(self, name: str) -> bytes:
        """The content of the object; DataError where it cannot be read."""
        content = io.BytesIO()
        self._copy_to(name, content, lambda: None, patience)
        return content.getvalue()

    def write_bytes(self, name: str, data: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Put the object, in one request; a store shows it whole or not at all."""
        key = self._key(name)

        def attempt(client: Any) -> None:
            if on_progress is None:
                client.put_object(Bucket=self.bucket, Key=key, Body=data)
                return
            from boto3.s3.transfer import TransferConfig

            whole = TransferConfig(multipart_threshold=_MOST_PUT_BYTES, use_threads=False)
            client.upload_fileobj(io.BytesIO(data), self.bucket, key, Callback=_called(on_progress), Config=whole)

        self._call(name, attempt, writes=True)

    def exists(self, name: str) -> bool:
        """True where the object exists; DataError where the store or bucket cannot be reached."""
        return self._head(name) is not None

    def _head(self, name: str) -> Any:
        from botocore.exceptions import ClientError

        key = self._key(name)

        def ask(client: Any) -> Any:
            try:
                return client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if not is_missing(error):
                    raise
                # A missing bucket answers 404 as well; asking for it tells the two apart.
                client.head_bucket(Bucket=self.bucket)
                return None

        return self._call(name, ask)

    def list(self, prefix: str = "") -> list[str]:
        """Names of the objects under the prefix; DataError for one that no storage has, as with `//` or `..` in it.

        Objects whose key ends with a slash stand for directories, and are none.
        """
        root = f"{self.prefix}/" if self.prefix else ""

        def names(client: Any) -> Iterator[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=root + prefix)
            for page in pages:
                yield from (item["Key"].removeprefix(root) for item in page.get("Contents", []))

        found = self._call(prefix, lambda client: sorted(names(client)))
        return [checked_name(name) for name in found if name and not name.endswith("/")]

    def entries(self) -> Iterator[Entry]:
        """All objects under the prefix, a page of the store's answer at a time and as the store orders and names them.

        Objects whose key ends with a slash stand for directories, and are none.
        """
        root = f"{self.prefix}/" if self.prefix else ""
        asked = {"Bucket": self.bucket, "Prefix": root}
        while True:
            page = self._call("", lambda client, asked=asked: client.list_objects_v2(**asked))  # type: ignore[misc]
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    yield _entry(item["Key"].removeprefix(root), item["ETag"], item["Size"])
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def entry(self, name: str) -> Entry | None:
        """The object, None where there is none; DataError where the store or bucket cannot be reached."""
        answer = self._head(name)
        return None if answer is None else _entry(name, answer["ETag"], answer["ContentLength"])

    def fetch(self, name: str, file: BinaryIO, most_bytes: int) -> Entry:
        """Write the content of the object into `file`, and give what it was when it was read.

        It is known to be there. DataError where it has more than `most_bytes`, before any of it is written.
        """
        answer = self._copy_to(name, file, lambda: None, patience_for_known, most_bytes)
        return _entry(name, answer["ETag"], answer["ContentLength"])

    def copy_to(self, name: str, file: BinaryIO, on_progress: Callable[[], None] = lambda: None) -> None:
        """Write the content of the object, which is known to be there, into `file`."""
        self._copy_to(name, file, on_progress, patience_for_known)

    def _copy_to(
        self,
        name: str,
        file: BinaryIO,
        on_progress: Callable[[], None],
        patience: Patience,
        most_bytes: int | None = None,
    ) -> Any:
        key = self._key(name)

        def attempt(client: Any) -> Any:
            on_progress()
            file.seek(0)
            answer = client.get_object(Bucket=self.bucket, Key=key)
            with answer["Body"] as body:
                if most_bytes is not None and answer["ContentLength"] > most_bytes:
                    body.close()
                    raise DataError(f"{self.uri}/{name}: {too_large(answer['ContentLength'], most_bytes)}")
                done = _copy(body, file, self.retry.stall_seconds, on_progress)
            if done != answer["ContentLength"]:
                raise TruncatedError(f"the body ended after {done} of {answer['ContentLength']} bytes")
            file.truncate()
            return answer

        return self._call(name, attempt, patience)

    def download(self, name: str, path: Path) -> None:
        """Copy the object to `path`."""
        with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
            self._copy_to(name, file, lambda: None, patience)

    def upload(self, path: Path, name: str, on_progress: Callable[[], None] | None = None) -> None:
        """Copy `path` to the object."""
        key = self._key(name)
        told = None if on_progress is None else _called(on_progress)
        self._call(name, lambda client: client.upload_file(str(path), self.bucket, key, Callback=told), writes=True)

    def delete(self, name: str) -> None:
        """Remove the object."""
        key = self._key(name)
        self._call(name, lambda client: client.delete_object(Bucket=self.bucket, Key=key), writes=True)


def _endpoint(environment: Mapping[str, str]) -> str | None:
    """The address of the store that is not Amazon's; DataError, which does not show it, where it is none."""
    address = environment.get(_ENDPOINT) or None
    if address is not None and (holds_secret(address) or not address.startswith(("http://", "https://"))):
        why = "holds credentials" if holds_secret(address) or "@" in address else "is no address"
        raise DataError(
            f"{_ENDPOINT}: {why} (it is not shown). Remedy: write it as http://host:port, and give the keys as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return address


def too_large(num_bytes: int, most_bytes: int) -> str:
    """Why an object is not read."""
    return f"has {num_bytes} bytes, and at most store.max_bytes={most_bytes} are read"


def _entry(name: str, etag: str, num_bytes: int) -> Entry:
    return Entry(name, num_bytes, f"{etag.strip(chr(34))}-{num_bytes:x}")


def _called(on_progress: Callable[[], None]) -> Callable[[int], None]:
    """As boto3 calls it, with the number of bytes that were sent, from any of its threads."""
    return lambda num_bytes: on_progress()


def _copy(body: Any, file: BinaryIO, stall_seconds: float, on_progress: Callable[[], None]) -> int:
    """Copy a body and return its bytes; StalledError where it comes slower than any working network.

    Each read takes what has arrived: one that waited for a whole chunk could not tell a trickle from a flow.
    """
    done, window_bytes, window_begin = 0, 0, time.monotonic()
    while chunk := body.read1(_CHUNK_BYTES):
        file.write(chunk)
        done += len(chunk)
        window_bytes += len(chunk)
        on_progress()
        now = time.monotonic()
        if now - window_begin > stall_seconds:
            if window_bytes < _LEAST_BYTES_PER_SECOND * stall_seconds:
                raise StalledError(f"{window_bytes} bytes in {now - window_begin:.1f} s")
            window_bytes, window_begin = 0, now
    return done
