"""Fixtures of all tests: one thread for torch, the root of the checkout, an S3 bucket, and real clips if at hand."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before torch or DeepSpeed is imported by any test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_clips(repo_root: Path) -> Path:
    """The folder of real clips, from `MEGAVIDEO_CLIPS` or beside the checkout; the test is skipped without it."""
    folder = Path(os.environ.get("MEGAVIDEO_CLIPS", repo_root.parent / "shared" / "clips"))
    if not folder.is_dir():
        pytest.skip("no folder of real clips: set MEGAVIDEO_CLIPS")
    return folder


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of the server that S3_ENDPOINT_URL names when MEGAVIDEO_TEST_S3 is set, else of moto's server."""
    if os.environ.get("MEGAVIDEO_TEST_S3"):
        yield from _bucket()
        return
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed, and MEGAVIDEO_TEST_S3 is not set")
    server = moto_server.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield from _bucket()
    server.stop()


def _bucket() -> Iterator[str]:
    import boto3

    client = boto3.session.Session().client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    name = f"megavideo-test-{os.getpid()}-{threading.get_native_id()}"
    client.create_bucket(Bucket=name)
    yield f"s3://{name}"
    for item in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)
