"""The rank that works longer is named, with the phase, though all take the same time for a step."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.distributed as dist

from megavideo.config.schema.guard import GuardConfig
from megavideo.parallel.machine.matmul_probe import MatmulProbe
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.thread_time import worked_seconds
from megavideo.testing.launch import run
from megavideo.train.health.stragglers import Stragglers, stragglers


# far apart, so that a busy machine of two cores does not name another
@pytest.mark.parametrize("phase", ["compute", pytest.param("data", marks=pytest.mark.slow)])
def test_the_slow_rank_of_four_is_named(tmp_path: Path, phase: str) -> None:
    out = tmp_path / "named.json"
    finished = run("tests.train.straggling", [str(out), phase, "12", "3.5"], tmp_path / "logs", processes=4)
    assert finished.status == 0, finished.err
    result = json.loads(out.read_text())
    named = [row for row in result["named"] if row["phase"] != "probe"]  # the probe is as fast on all, or as disturbed
    assert [(row["rank"], row["host"], row["phase"]) for row in named] == [(2, socket.gethostname(), phase)] * 2
    assert all(row["seconds"] > 3.5 * row["median_seconds"] for row in named)
    print("seconds for the step that compares, and the median of the others:", result["costs"])


def test_a_thread_that_waits_does_not_work_and_one_that_computes_does() -> None:
    begin = worked_seconds()
    threading.Event().wait(0.3)
    waited = worked_seconds() - begin
    begin, end = worked_seconds(), time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    assert waited < 0.2 < worked_seconds() - begin


@pytest.mark.parametrize(("kind", "compute"), [("cuda", 0.0), ("cpu", 3.0)])
def test_on_a_gpu_the_probe_stands_for_what_is_computed(
    kind: str, compute: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host's thread waits inside of calls, and what it worked there says nothing."""
    tensor, empty = torch.tensor, torch.empty
    monkeypatch.setattr(torch, "tensor", lambda *given, device, **options: tensor(*given, **options))
    monkeypatch.setattr(torch, "empty", lambda *given, device, **options: empty(*given, **options))
    monkeypatch.setattr(dist, "all_gather_object", lambda hosts, mine: hosts.__setitem__(slice(None), [mine] * 2))
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda table, row: table.copy_(row.repeat(2)))
    launch = Launch(0, 0, 2, torch.device(kind))
    slow = Stragglers(GuardConfig(straggler_every=2), launch)
    slow._probe = cast(MatmulProbe, SimpleNamespace(seconds=lambda: 0.25))
    slow._seconds, slow._steps = {"data": 1.0, "compute": 6.0, "probe": 0.0}, 2
    assert slow._gathered() == [{"data": 0.5, "compute": compute, "probe": 0.25}] * 2


def test_what_matters_is_compared_among_those_alike() -> None:
    def row(data: float = 0.0, compute: float = 1.0, probe: float = 0.01) -> dict[str, float]:
        return {"data": data, "compute": compute, "probe": probe}

    everyone = [range(4)]
    assert stragglers([row(), row(), row(compute=1.4), row()], 2.0, 1.3, everyone) == [(2, "compute", 1.4, 1.0)]
    assert stragglers([row(), row(compute=1.2), row(compute=1.25), row()], 2.0, 1.3, everyone) == []
    # a hundred times nothing is nothing
    assert stragglers([row(data=1e-6), row(data=1e-4), row(), row()], 2.0, 1.3, everyone) == []
    assert stragglers([row(data=0.5), row(), row(), row()], 2.0, 1.3, everyone) == [(0, "data", 0.5, 0.0)]
    assert stragglers([row(), row(), row(), row(probe=0.02)], 2.0, 1.3, everyone) == [(3, "probe", 0.02, 0.01)]
    # a pipeline's last stage has more to do than its first
    stages = [row(), row(), row(compute=2.0), row(compute=2.0)]
    assert stragglers(stages, 4.0, 1.3, [[0, 1], [2, 3]]) == []
    assert [rank for rank, *_ in stragglers(stages, 4.0, 1.3, everyone)] == [2, 3]
    # of two, the slower one
    assert stragglers([row(compute=1.4), row()], 2.0, 1.3, [range(2)]) == [(0, "compute", 1.4, 1.0)]
