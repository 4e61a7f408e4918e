"""The command line: what goes to which stream, and which exit status."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megavideo import __version__
from megavideo.cli.main import main
from megavideo.errors import CheckpointError, DataError, StopRequested, StoreUnreachable

TRAIN = ["train", "data.uri=latents", "run=micro"]


@dataclass(frozen=True)
class Report:
    """Stands in for a room's report."""

    steps: int = 3
    loss: float = float("nan")
    folder: str = "runs/micro"
    rows: list[dict[str, int]] = field(default_factory=lambda: [{"a": 1}, {"a": 2}])


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a function in the place of a room's entry point, so that no room is imported."""

    def place(module: str, name: str, function: Callable[..., Any]) -> None:
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, function)
        monkeypatch.setitem(sys.modules, module, stand_in)

    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return place


def test_report_is_text_or_one_object(room: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    def train(cfg: Any) -> Report:
        print("a library prints")
        os.write(1, b"a child process prints\n")
        sys.stdout.write("another prints\n")
        return Report(steps=cfg.train.steps)

    room("megavideo.train.run", "train", train)
    assert main([*TRAIN, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"steps": 50, "loss": None, "folder": "runs/micro", "rows": [{"a": 1}, {"a": 2}]}
    assert out.count("\n") == 1
    for words in ("a library prints", "a child process prints", "another prints"):
        assert words in err
    assert main(TRAIN) == 0
    out, _ = capfd.readouterr()
    assert "steps   50" in out
    assert "prints" not in out


@pytest.mark.parametrize(
    ("variable", "rank", "shown"), [("RANK", "0", True), ("RANK", "1", False), ("SLURM_PROCID", "3", False)]
)
def test_only_rank_0_reports(
    room: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    rank: str,
    shown: bool,
) -> None:
    room("megavideo.train.run", "train", lambda cfg: Report())
    monkeypatch.setenv(variable, rank)
    assert main([*TRAIN, "--json"]) == 0
    assert bool(capfd.readouterr().out) is shown


def test_progress_goes_to_standard_error_once(
    room: Callable[..., None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(cfg: Any) -> None:
        logging.getLogger("megavideo.train.run").info("at work")
        logging.getLogger("megavideo.train.run").debug("in detail")

    room("megavideo.train.run", "train", train)
    assert main(TRAIN) == main(TRAIN) == 0
    out, err = capfd.readouterr()
    assert (out, err.count("at work"), err.count("in detail")) == ("done\ndone\n", 2, 0)
    assert main([*TRAIN, "-v"]) == 0
    assert "in detail" in capfd.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(TRAIN) == 0
    assert capfd.readouterr() == ("", "")


def test_free_text_is_never_parsed(
    room: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    got: list[Any] = []
    room(
        "megavideo.generate.run", "sample", lambda cfg, prompts, negative, files: got.append((tuple(prompts), negative))
    )
    file = tmp_path / "prompts.txt"
    file.write_text("  first, line \n\nsecond=line\n", encoding="utf-8")
    text = 'a "red" ball, {bouncing} [left] = it\'s ~fast, ${x}'
    words = [
        "sample",
        "ckpt=run",
        "out=folder",
        "--prompt",
        text,
        "--prompt=b=c,d",
        "--prompt",
        "-v is a flag, this is not",
    ]
    assert main([*words, f"--prompts={file}", "--negative", "blur, noise"]) == 0
    prompts = (text, "b=c,d", "-v is a flag, this is not", "first, line", "second=line")
    assert got == [(prompts, "blur, noise")]
    assert capfd.readouterr().out == "done\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "megavideo VERB"),
        (["--jsn"], "--jsn"),
        (["trian"], "megavideo train"),
        (["xyzzy"], "ingest, caption, train-vae, encode, train, status"),
        (["train"], "data.uri=VALUE; VALUE is the folder or s3:// prefix that `megavideo encode` wrote"),
        (["train", "data.uri=a", "optim.lrr=1"], "optim.lr?"),
        (["train", "data.uri=a", "--prompt", "x"], "--prompt"),
        (["slurm-gen", "fooo=1"], "add --help"),
        (["slurm-gen", "--check=no"], "write --check alone"),
        (["slurm-gen", "words=[optim.lr=1]"], "'words=[\"optim.lr=1\"]'"),
        (["train", "--version"], "--version"),
        (["train", "latents"], "did you mean data.uri=latents?"),
        (["train", "help"], "did you mean --help?"),
        (["help"], "did you mean `megavideo --help`?"),
        (["train", "data.uri", "=", "latents"], "write data.uri=VALUE, without spaces"),
        (["train", "--data.uri=latents"], "without dashes, as data.uri=latents"),
        (["encode", "src=a", "out=b", "--overwrite"], "without dashes, as overwrite=VALUE"),
        (["sample", "ckpt=a", "out=b", "prompt=a ball"], 'write --prompt "a ball"'),
        (["sample", "ckpt=a", "out=b", "--prompt", "a", "ball"], "quotes around a text of several words"),
        (["sample", "ckpt=a", "out=b"], "--prompt TEXT"),
        (["sample", "ckpt=a", "out=b", "--prompt"], "needs TEXT"),
        (["sample", "ckpt=a", "out=b", "--prompt", "--verbose"], "needs TEXT"),
        (["sample", "ckpt=a", "out=b", "--promt", "x"], "did you mean --prompt"),
        (["sample", "ckpt=a", "out=b", "--prompts", "none.txt"], "none.txt"),
        (["sample", "ckpt=a", "out=b", "--prompt", "x", "--negative", "a", "--negative", "b"], "twice"),
        (["sample", "ckpt=a", "out=b", "guidance=1", "--prompt", "x", "--negative", "a"], "no effect"),
    ],
)
def test_faults_are_one_line_and_status_2(words: list[str], part: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert part in err


def test_empty_and_binary_prompt_files_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content in (b"\n \n", b"\xff\xfe\x00"):
        (tmp_path / "p.txt").write_bytes(content)
        assert main(["sample", "ckpt=a", "out=b", "--prompts", str(tmp_path / "p.txt")]) == 2
        assert "p.txt" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (DataError("a.mp4: is damaged"), 2, "error"),
        (CheckpointError("ckpt: is incomplete"), 2, "error"),
        (StoreUnreachable("s3://bucket/a: given up after 20 s"), 75, "error"),
        (StopRequested("SIGUSR1: saved at step 7"), 75, "stopped"),
    ],
)
def test_errors_of_rooms_as_json(
    error: Exception, status: int, kind: str, room: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    def ingest(cfg: Any) -> None:
        raise error

    room("megavideo.data.ingest", "ingest", ingest)
    assert main(["ingest", "src=a", "out=b", "--json"]) == status
    out, err = capfd.readouterr()
    assert json.loads(out) == {"error": {"type": type(error).__name__, "message": str(error)}}
    assert err == f"{kind}: {error}\n"


def test_config_error_as_json_names_its_parts(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "train", "data.uri=a", "model.heads=3"]) == 2
    error = json.loads(capfd.readouterr().out)["error"]
    assert (error["type"], error["field"], error["value"]) == ("ConfigError", "model.heads", 3)
    assert error["rule"] in error["message"]
    assert error["remedy"] in error["message"]


def test_each_task_of_a_job_tells_its_own_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert main(["ingest", "src=a", "--json"]) == 2  # tasks share work, but each is a command of its own
    assert json.loads(capfd.readouterr().out)["error"]["field"] == "out"
    assert main(["train", "data.uri=a", "model.heads=3", "--json"]) == 2
    assert capfd.readouterr().out == ""  # rank 0 tells it


def test_interrupt_is_130_and_a_defect_keeps_its_traceback(room: Callable[..., None]) -> None:
    def interrupted(cfg: Any) -> None:
        raise KeyboardInterrupt

    def defect(cfg: Any) -> None:
        raise RuntimeError("a bug")

    room("megavideo.encoders.encode.run", "encode", interrupted)
    assert main(["encode", "src=a", "out=b"]) == 130
    room("megavideo.encoders.encode.run", "encode", defect)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["encode", "src=a", "out=b"])


def test_help_is_made_from_the_schema(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capfd.readouterr().out
    for verb in ("ingest", "encode", "train", "sample"):
        assert f"\n  {verb} " in out
    assert main(["train", "--help"]) == 0
    out = capfd.readouterr().out
    for part in (
        "model.layers",
        "int  >= 1  = 4",
        "data.uri",
        "required",
        "wan_14b",
        "flow | ddpm  = flow",
        "float or null",
    ):
        assert part in out
    assert "\nguard: What is done about bad steps" in out  # what a section's settings do
    assert main(["sample", "-h"]) == 0
    assert "--prompt TEXT" in capfd.readouterr().out
    assert main(["slurm-gen", "-h"]) == 0
    out = capfd.readouterr().out
    assert (
        "[--check]" in out and "{NCCL_DEBUG:WARN}" in out and '"a person pouring coffee into a white cup, close' in out
    )
    assert main(["report", "-h"]) == 0
    assert "usage: megavideo report RUN key=value" in capfd.readouterr().out


@pytest.mark.parametrize("closed", ["head", "closed", "full"])
def test_a_reader_that_goes_is_no_defect(closed: str, tmp_path: Path, repo_root: Path) -> None:
    ends = {"head": "| true; exit ${PIPESTATUS[0]}", "closed": ">&-", "full": "> /dev/full"}
    command = f"{sys.executable} -m megavideo status {tmp_path} --json {ends[closed]}"
    done = subprocess.run(["bash", "-c", command], cwd=repo_root, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.returncode == (2 if closed == "full" else 0)
    assert ("No space left" in done.stderr) == (closed == "full")


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"megavideo {__version__}\n"
    assert main(["--version", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"version": __version__}


def test_python_dash_m_works_and_imports_no_torch(repo_root: Path) -> None:
    code = "import sys, megavideo.cli.main as m; m.main(['train', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, timeout=60).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "megavideo", "train", "data.uri=a", "layout=tp3"],
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: layout='tp3'")
