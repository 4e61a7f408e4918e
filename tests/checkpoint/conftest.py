"""Fixtures of the tests of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.checkpoint.s3_server import RestartingServer


@pytest.fixture
def restarting_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[RestartingServer]:
    """A server with a bucket."""
    server = RestartingServer(monkeypatch)
    yield server
    server.stop()
