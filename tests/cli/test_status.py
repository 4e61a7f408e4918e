"""`megavideo status`: words, JSON, a terminal, and watching until a run ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from megavideo.cli.main import main
from megavideo.data.storage.owners import Claim, owning
from megavideo.observe.metrics import MetricsWriter


def _write(root: Path, steps: int, of: int) -> Path:
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(f"name: {root.name}\ntrain: {{steps: {of}}}\n")
    with MetricsWriter(root / "metrics.jsonl") as writer:
        for step in range(1, steps + 1):
            writer.write(step, {"loss": 1 / step, "seconds": 0.5, "tokens": 1000})
    return root


def test_one_run_as_text_and_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = _write(tmp_path / "run", 40, 100)
    assert main(["status", str(run)]) == 0
    shown = capfd.readouterr().out
    assert shown.startswith("run: running, ") and "step 40 of 100" in shown and "30s left" in shown
    assert main(["status", f"run={run}", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["runs"]
    assert (found["state"], found["step"], found["steps"]) == ("running", 40, 100)
    assert found["loss"]["steps"] == 20


def test_a_folder_of_runs_is_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "a", 40, 100)
    _write(tmp_path / "b", 30, 30)
    assert main(["status", str(tmp_path)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["run", "state"], ["a", "running"], ["b", "finished"]]


def test_which_run_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([], "run: is required"),
        ([str(tmp_path / "none")], "is no folder"),
        ([str(tmp_path), f"run={tmp_path}"], "is given beside"),
        ([str(tmp_path), "watch=0"], "watch"),
    ):
        assert main(["status", *words]) == 2
        assert said in capfd.readouterr().err


def test_a_path_with_an_equals_sign_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "a=b", 30, 30)
    monkeypatch.chdir(tmp_path)
    for word in ("a=b", "./a=b", str(tmp_path / "a=b")):
        assert main(["status", word]) == 0
        assert capfd.readouterr().out.startswith("a=b: finished")
    (tmp_path / "window=5").mkdir()
    assert main(["status", "a=b", "window=5", "--json"]) == 0  # a setting stays one
    assert json.loads(capfd.readouterr().out)["runs"][0]["loss"]["steps"] == 5
    assert main(["status", "no/such=run"]) == 2
    assert "no/such=run: is no folder" in capfd.readouterr().err
    assert main(["status", "a=b", "windw=5"]) == 2
    assert "did you mean window?" in capfd.readouterr().err


def test_the_owner_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = _write(tmp_path / "run", 3, 30)
    with owning(run, Claim("train", "name= another run")):
        assert main(["status", str(run)]) == 0
        assert f"train, process {os.getpid()} on " in capfd.readouterr().out
        assert main(["status", str(run), "--json"]) == 0
        owner = json.loads(capfd.readouterr().out)["runs"][0]["owner"]
        assert (owner["use"], owner["pid"], owner["alive"]) == ("train", os.getpid(), True)
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["runs"][0]["owner"] is None


def test_a_run_that_reads_its_data_is_told_with_its_owner(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with owning(tmp_path / "run", Claim("train", "name= another run")):
        assert main(["status", str(tmp_path / "run")]) == 0
    told = capfd.readouterr().out
    assert told.startswith("run: empty, nothing was written here yet") and f"process {os.getpid()} on" in told


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    run = _write(tmp_path / "run", 3, 5)
    watching = subprocess.Popen(
        [sys.executable, "-c", _call("status", str(run), "--watch", "0.1", "--json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stderr is not None and watching.stdout is not None
    with MetricsWriter(run / "metrics.jsonl", resume_step=3) as writer:
        for step in (4, 5):
            lines = iter(watching.stderr.readline, "")
            assert any(f"step {step - 1} of 5" in line for line in lines)
            writer.write(step, {"loss": 0.1, "seconds": 0.3})
    out, err = watching.communicate()
    assert watching.returncode == 0, err
    assert json.loads(out)["runs"][0]["state"] == "finished"


def test_on_a_terminal_it_is_drawn(tmp_path: Path) -> None:
    run = _write(tmp_path / "run", 40, 100)
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", _call("status", str(run))], stdout=theirs, stderr=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    drawn = b""
    while chunk := _read(ours):
        drawn += chunk
    os.close(ours)
    assert done.returncode == 0, done.stderr
    text = drawn.decode()
    assert "\x1b[" in text and "╭" in text and "step 40 of 100" in text


def _call(*words: str) -> str:
    return f"import sys; from megavideo.cli.main import main; sys.exit(main({list(words)!r}))"


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so where the other side is closed and all is read
        return b""
