"""Ranks that do not all come are told of, by the one that holds the store and by those that look for it."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from megavideo.errors import RanksMissing
from megavideo.parallel.processes.distributed import free_port, process_group


@pytest.mark.parametrize(
    ("rank", "words", "by_agent"),
    [(0, "1/2 clients joined", False), (1, "trying to connect|nothing answered", False),
     (0, "trying to connect|nothing answered", True)],
)  # fmt: skip
def test_a_missing_rank(monkeypatch: pytest.MonkeyPatch, rank: int, words: str, by_agent: bool) -> None:
    """Also where torchrun, which keeps the store, is gone: the limit is the one that is told of, and not twice that."""
    port, limit = str(free_port()), 6.0
    variables = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (variables | {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": str(by_agent)}).items():
        monkeypatch.setenv(name, value)
    begin = time.monotonic()
    with pytest.raises(RanksMissing, match=f"the 2 ranks did not meet at 127.0.0.1:{port}.*({words}).*preflight"):
        with process_group(meeting=timedelta(seconds=limit)):
            pass
    assert limit <= time.monotonic() - begin < limit + 5.0


def test_one_process_under_torchrun_meets_itself(tmp_path: Path) -> None:
    """It takes a port of its own, where torchrun's store does not listen: it must not wait for that store there."""
    program = tmp_path / "alone.py"
    program.write_text(
        "from megavideo.parallel.processes.distributed import process_group\n"
        "with process_group() as launch:\n    print(launch.world_size)\n"
    )
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node=1", str(program)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
