"""tools/gpu_check as far as a machine without GPU can try it: its refusal, its own arithmetic, and that it can fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megavideo.checkpoint.snapshot import Snapshot
from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.attention.segments import Segments
from megavideo.model.layers import LocalLayers
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE
from tests.parallel.bare_machine import bare_environment
from tools.gpu_check.unasked import Unasked

TOOL = "tools/gpu_check.sh"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_machine_without_gpu_is_refused(repo_root: Path) -> None:
    done = subprocess.run(["sh", TOOL, sys.executable], cwd=repo_root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no NVIDIA GPU" in done.stderr


def test_python_without_torch_is_refused(repo_root: Path) -> None:
    done = subprocess.run(["sh", TOOL, "false"], cwd=repo_root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "false cannot import torch" in done.stderr


def test_rehearsal_passes_on_a_bare_machine(repo_root: Path, tmp_path: Path) -> None:
    environment = bare_environment(repo_root, tmp_path / "bare")
    words = ["sh", TOOL, sys.executable, "--rehearse", "--json", str(tmp_path / "summary.json")]
    done = subprocess.run(words, cwd=repo_root, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    log = tmp_path / "bare" / "log"
    assert not log.exists(), log.read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rehearsal"] is True
    assert (summary["passed"], summary["failed"]) == (len(summary["checks"]) - len(summary["skipped"]), [])
    assert {name.partition(":")[0] for name in summary["skipped"]} == {"attention cpu", "attention stand_in"}
    assert "attention stand_in: keys in parts give the whole" in {check["name"] for check in summary["checks"]}
    assert json.loads(done.stdout.splitlines()[-1]) == summary
    names = {check["name"] for check in summary["checks"]}
    kinds = ("nothing recomputed", "selective", "full", "full, offloaded")
    wanted = {f"gradients, {how}, {kind}: times the error of bf16" for how in ("eager", "compiled") for kind in kinds}
    assert wanted <= names
    assert {"a snapshot taken beside training is exact"} <= names


@pytest.fixture
def tools(repo_root: Path) -> Iterator[Callable[[str], Any]]:
    """Imports a module of the checks by name."""
    sys.path.insert(0, str(repo_root / "tools" / "gpu_check"))
    try:
        yield import_module
    finally:
        sys.path.pop(0)


def test_gradients_far_from_the_exact_ones_are_seen(tools: Callable[[str], Any]) -> None:
    gradients = tools("gradients")
    exact = {name: torch.arange(1.0, 5.0, dtype=torch.float64) for name in ("a", "b")}
    rounded = {name: values * 1.001 for name, values in exact.items()}
    assert gradients.worst_ratio(rounded, rounded, exact) == pytest.approx(1.0)
    assert gradients.worst_ratio(rounded | {"b": exact["b"] * 1.01}, rounded, exact) == pytest.approx(10.0)
    # nothing is below a limit that is not a number
    assert not gradients.worst_ratio(rounded | {"b": exact["b"] * torch.nan}, rounded, exact) < gradients.TIMES_LIMIT
    with pytest.raises(AssertionError, match="without gradient: \\['b'\\]"):
        gradients.worst_ratio({"a": rounded["a"]}, rounded, exact)


class Careless:
    """Attention whose backward pass leaves garbage in the gradients of rows past the last segment."""

    def __call__(self, query: Any, key: Any, value: Any, queries: Segments, keys: Segments) -> Any:
        for tensor, segments in ((query, queries), (key, keys), (value, keys)):
            tensor.register_hook(partial(self._spoil, segments.bounds[-1]))
        return CPU_FLASH(query, key, value, queries, keys)

    @staticmethod
    def _spoil(total: int, grad: torch.Tensor) -> torch.Tensor:
        spoilt = grad.clone()
        spoilt[total:] = 0.01
        return spoilt


@pytest.mark.parametrize("recompute", ["nothing recomputed", "full"])
def test_garbage_in_the_gradients_of_padding_is_seen(
    tools: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, recompute: str
) -> None:
    gradients, cpu = tools("gradients"), torch.device("cpu")
    kind = gradients.RECOMPUTES[recompute]
    exact = gradients._gradients(cpu, torch.float64, None)
    rounded = gradients._gradients(cpu, torch.bfloat16, None)
    monkeypatch.setattr(gradients, "local_layers", lambda device: LocalLayers(Careless()))  # type: ignore[arg-type]
    spoilt = gradients._gradients(cpu, torch.bfloat16, kind)
    assert gradients.worst_ratio(spoilt, rounded, exact) > gradients.TIMES_LIMIT


def test_a_snapshot_that_training_reaches_is_seen(tools: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of the copy that cannot see a late one would be none."""
    engine_steps = tools("engine_steps")
    state = torch.arange(6.0)
    fragment = Fragment("a", (6,), WHOLE, 0, {"weight": state}, torch.tensor(1.0))
    monkeypatch.setattr(engine_steps, "owned_fragments", lambda engine: [fragment])
    monkeypatch.setattr(engine_steps, "given", lambda device, dtype: _Batch())
    monkeypatch.setattr(engine_steps, "one_update", lambda engine, *given: engine.update())

    class Engine:
        deepspeed = SimpleNamespace(module=lambda pack: torch.zeros(1))

        def update(self) -> None:
            state.add_(1.0)

    engine_steps._snapshot(Engine(), torch.device("cpu"))
    take = Snapshot.take
    # a copy that is made of what training is at by then
    monkeypatch.setattr(Snapshot, "take", lambda self, *given: (state.add_(1.0), take(self, *given))[1])
    with pytest.raises(AssertionError, match="differs"):
        engine_steps._snapshot(Engine(), torch.device("cpu"))
    monkeypatch.setattr(Snapshot, "take", take)
    Engine.update = lambda self: None  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="changed nothing"):
        engine_steps._snapshot(Engine(), torch.device("cpu"))


class _Batch:
    """What `_snapshot` asks of a batch."""

    pack = target = weight = torch.ones(1)

    def loss(self, prediction: torch.Tensor) -> torch.Tensor:
        return prediction.sum()


def test_what_a_section_needs_can_be_missing(tools: Callable[[str], Any], tmp_path: Path) -> None:
    checks = tools("harness").Checks(tmp_path / "found.json", {"machine": "x"})
    checks.section("first", lambda: import_module("a_package_that_is_nowhere"))  # type: ignore[arg-type, return-value]
    checks.section("second", lambda: checks.run("fine", lambda: 0.1, 0.2))
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["machine"], found["passed"], found["failed"]) == ("x", 1, ["first: what its checks need"])
    assert "a_package_that_is_nowhere" in found["checks"][0]["error"]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended with status -9"),
        (lambda: time.sleep(300), "stopped after 3 s"),
        (lambda: os._exit(3), "ended with status 3"),
    ],
)
def test_a_section_whose_process_is_lost_is_a_failure_and_others_follow(
    tools: Callable[[str], Any], tmp_path: Path, end: Callable[[], None], told: str
) -> None:
    checks = tools("harness").Checks(tmp_path / "found.json")

    def lost() -> None:
        checks.add_facts({"machine": "x"})
        checks.run("before", lambda: 0.1, 0.2)
        end()

    checks.apart("bad", lost, seconds=3.0)
    checks.apart("good", lambda: checks.run("after", lambda: 0.1, 0.2), seconds=30.0)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(check["name"], check["error"]) for check in found["checks"]] == [
        ("before", None), ("bad: its process", told), ("after", None)
    ]  # fmt: skip
    assert (found["machine"], found["failed"]) == ("x", ["bad: its process"])


def test_a_failed_check_is_counted(tools: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> float:
        raise ValueError("no kernel\nat all")

    def unasked() -> float:
        raise Unasked("needs a GPU")

    checks = tools("harness").Checks()
    checks.run("fine", lambda: 0.1, 0.2)
    checks.run("large", lambda: 0.3, 0.2)
    checks.run("not a number", lambda: float("nan"), 0.2)
    checks.run("broken", broken, 0.2)
    checks.run("elsewhere", unasked, 0.2)
    summary = checks.summary()
    assert (summary["passed"], summary["failed"]) == (1, ["large", "not a number", "broken"])
    assert (summary["skipped"], summary["checks"][4]["skipped"]) == (["elsewhere"], "needs a GPU")
    assert summary["checks"][3]["error"].startswith("ValueError: no kernel (")
    assert capsys.readouterr().out.count("FAIL") == 3
