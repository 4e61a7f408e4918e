"""tools/gpu_check as far as a machine without GPU can try it: its refusal, its own arithmetic, and that it can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_rehearsal_with_local_layers_passes(repo_root: Path, tmp_path: Path) -> None:
    words = [sys.executable, "tools/gpu_check/main.py", "--rehearse", "--json", str(tmp_path / "summary.json")]
    environment = {"PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=repo_root, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rehearsal"] is True
    assert (summary["passed"], summary["failed"]) == (len(summary["checks"]), [])
    assert json.loads(done.stdout.splitlines()[-1]) == summary


def test_a_failed_check_is_counted(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(repo_root / "tools" / "gpu_check"))
    try:
        from harness import Checks
    finally:
        sys.path.pop(0)

    def broken() -> float:
        raise ValueError("no kernel\nat all")

    checks = Checks()
    checks.run("fine", lambda: 0.1, 0.2)
    checks.run("large", lambda: 0.3, 0.2)
    checks.run("not a number", lambda: float("nan"), 0.2)
    checks.run("broken", broken, 0.2)
    summary = checks.summary({})
    assert (summary["passed"], summary["failed"]) == (1, ["large", "not a number", "broken"])
    assert summary["checks"][3]["error"].startswith("ValueError: no kernel (")
    assert capsys.readouterr().out.count("FAIL") == 3
