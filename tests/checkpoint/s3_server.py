"""An S3 server on this machine that can be stopped and started again with what it holds."""

from __future__ import annotations

import os
from typing import Any

import pytest


class RestartingServer:
    """moto's server, in this process, on one port. `uri` is an empty bucket of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._module = pytest.importorskip("moto.server", reason="moto is not installed")
        self._port = 0
        self.start()
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{self._port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        name = f"megavideo-restart-{os.getpid()}-{self._port}"
        boto3.session.Session().client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"]).create_bucket(Bucket=name)
        self.uri = f"s3://{name}"

    def start(self) -> None:
        """Start it, again on the same port."""
        self._server: Any = self._module.ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """Stop it: connections are refused."""
        self._server.stop()
