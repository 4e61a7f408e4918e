"""Ranks that do not all come are told of, by the one that holds the store and by those that look for it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from megavideo.errors import TopologyError
from megavideo.parallel import distributed
from megavideo.parallel.distributed import free_port, process_group


@pytest.mark.parametrize(("rank", "words"), [(0, "1/2 clients joined"), (1, "trying to connect")])
def test_a_missing_rank(monkeypatch: pytest.MonkeyPatch, rank: int, words: str) -> None:
    port = str(free_port())
    variables = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (variables | {"MASTER_PORT": port}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "DEFAULT_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(TopologyError, match=f"the 2 ranks did not meet at 127.0.0.1:{port}.*{words}.*preflight"):
        with process_group():
            pass
