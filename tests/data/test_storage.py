from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from pathlib import Path

import pytest

from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.open import download_all, open_storage
from megavideo.data.storage.protocol import Storage
from megavideo.data.storage.retry import RetryPolicy
from megavideo.errors import DataError, StoreUnreachable
from megavideo.observe.whole_file import replacing


def exercise(storage: Storage, tmp_path: Path) -> None:
    """What every storage does."""
    assert not storage.exists("a/b.bin")
    storage.write_bytes("a/b.bin", b"one")
    storage.write_bytes("a/b.bin", b"two")
    (tmp_path / "up.bin").write_bytes(b"three")
    storage.upload(tmp_path / "up.bin", "a/c.bin")
    storage.write_bytes("d.bin", b"")
    assert storage.read_bytes("a/b.bin") == b"two"
    assert storage.exists("a/b.bin") and not storage.exists("a")
    assert storage.list() == ["a/b.bin", "a/c.bin", "d.bin"]
    assert storage.list("a/") == ["a/b.bin", "a/c.bin"]
    download_all(storage, "a/", tmp_path / "down")
    assert (tmp_path / "down" / "c.bin").read_bytes() == b"three"
    storage.delete("d.bin")
    storage.delete("d.bin")
    assert storage.list("d") == []
    for fault in (lambda: storage.read_bytes("no"), lambda: storage.download("no", tmp_path / "no")):
        with pytest.raises(DataError, match="no"):
            fault()
    assert not (tmp_path / "no").exists()
    for name in ("../x", "/x", ""):
        with pytest.raises(DataError, match="relative"):
            storage.write_bytes(name, b"")


def test_local(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "store"))
    assert storage.list() == []
    exercise(storage, tmp_path)
    (tmp_path / "store" / "link").symlink_to(tmp_path / "nowhere")
    assert "link" not in storage.list() and not storage.exists("link")
    assert open_storage(f"file://{tmp_path}/store").read_bytes("a/b.bin") == b"two"


def test_local_writes_are_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="midway"), replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("midway")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        LocalStorage(tmp_path / "file").write_bytes("x", b"")


def test_what_the_disk_refuses_is_an_error_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage, barred = LocalStorage(tmp_path), tmp_path / "file" / "x"
    too_long = LocalStorage(tmp_path / ("x" * 300))  # as where a folder may not be looked into
    storage.write_bytes("a", b"")
    for refused in (
        lambda: storage.download("a", barred),
        lambda: storage.upload(tmp_path / "file", "file/x"),
        lambda: too_long.exists("a"),
        lambda: too_long.list(),
        lambda: too_long.delete("a"),
        lambda: LocalStorage(tmp_path / "file").list(),
    ):
        with pytest.raises(DataError, match=r"cannot be (read|written) \(.*\)\. Remedy: check the path"):
            refused()


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, scandir = LocalStorage(tmp_path), os.scandir
    storage.write_bytes("a/b", b"")

    def barred(path: str) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", barred)
    with pytest.raises(DataError, match="Permission denied"):
        storage.list()


def test_unknown_schemes() -> None:
    with pytest.raises(DataError, match="'gs' is not supported"):
        open_storage("gs://bucket/x")
    with pytest.raises(DataError, match="no bucket"):
        open_storage("s3://")


def test_s3_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    storage = open_storage("s3://bucket/x", RetryPolicy(total_seconds=0.6, first_seconds=0.05))
    begin = time.monotonic()
    with pytest.raises(StoreUnreachable, match=r"s3://bucket/x/y: .*given up after . s\)\. Remedy: .*S3_ENDPOINT_URL"):
        storage.exists("y")
    assert storage.retries >= 2 and time.monotonic() - begin < 20


def test_s3_errors_do_not_show_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    with pytest.raises(DataError) as caught:
        open_storage("s3://bucket/x", RetryPolicy(total_seconds=0)).read_bytes("the-secret")
    text = str(caught.value)
    assert "127.0.0.1:1" in text and "the-secret" not in text
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None  # a traceback shows no other message


@pytest.mark.parametrize(
    "address",
    [
        "nonsense", "http://me:hunter2@host:9000", "http://me:hun/ter2@host", "https://me:hun@ter2@host:1",
        "hunter2@host", "me:hun/ter2@host:9000", "http://hunter2@host", "http://host/?token=hunter2",
        "http://me:hun ter2@host",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_no_plain_address_is_not_shown(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", address)
    with pytest.raises(DataError, match="http://host:port") as caught:
        open_storage("s3://bucket/x").exists("y")
    assert not any(part in str(caught.value) for part in ("hunter2", "ter2", "nonsense", "me:"))


@pytest.mark.parametrize("uri", ["s3://me:hunter2@bucket/x", "s3://me:hun/ter2@bucket", "gs://me:hunter2@bucket/x"])
def test_an_address_with_a_password_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(DataError) as caught:
        open_storage(uri)
    assert "ter2" not in str(caught.value) and "@bucket" in str(caught.value)


def test_s3(s3_bucket: str, tmp_path: Path) -> None:
    exercise(open_storage(f"{s3_bucket}/some/prefix/"), tmp_path)
    nowhere = open_storage("s3://no-such-bucket-here/x")
    with pytest.raises(DataError, match="bucket"):
        nowhere.exists("y")
    for refused in (lambda: nowhere.upload(tmp_path / "up.bin", "y"), lambda: nowhere.write_bytes("y", b"")):
        with pytest.raises(DataError, match="Remedy: make the bucket first"):
            refused()
    with pytest.raises(DataError, match="cannot be written"):
        open_storage(f"{s3_bucket}/some/prefix/").download("a/b.bin", tmp_path / "up.bin" / "x")


def test_s3_after_fork_and_pickle(s3_bucket: str) -> None:
    storage = open_storage(s3_bucket)
    storage.write_bytes("x", b"content")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read_bytes("x") == b"content"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(storage.read_bytes, ["x"] * 8) == [b"content"] * 8
