"""A bucket for tests, on a real server or on moto's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_test_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket.

    Of the server that S3_ENDPOINT_URL names when MEGAVIDEO_TEST_S3 is set, else of moto's, to which the environment is
    set.
    """
    if os.environ.get("MEGAVIDEO_TEST_S3"):
        with _bucket() as uri:
            yield uri
        return
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed, and MEGAVIDEO_TEST_S3 is not set")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with _bucket() as uri:
        yield uri
    server.stop()


@contextmanager
def _bucket() -> Iterator[str]:
    import boto3

    client = boto3.session.Session().client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    name = f"megavideo-test-{os.getpid()}-{threading.get_native_id()}"
    client.create_bucket(Bucket=name)
    yield f"s3://{name}"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)
