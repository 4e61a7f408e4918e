"""Ranks that do not all come are told of, by the one that holds the store and by those that look for it."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from megavideo.errors import TopologyError
from megavideo.parallel.processes import distributed
from megavideo.parallel.processes.distributed import free_port, process_group


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
