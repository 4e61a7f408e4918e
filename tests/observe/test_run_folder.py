"""The run folder and the log."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from megavideo.observe import run_folder
from megavideo.observe.log import LOGGER_NAME, configure_logging
from megavideo.observe.run_folder import code_version, create_run_folder


@pytest.fixture
def _log_restored() -> Iterator[None]:
    logger = logging.getLogger(LOGGER_NAME)
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_folder_holds_settings_and_version(tmp_path: Path) -> None:
    folder = create_run_folder(tmp_path / "runs" / "a", "name: a\n", ["megavideo", "train", "run=a"])
    assert folder.config.read_text() == "name: a\n"
    version = json.loads(folder.code_version.read_text())
    assert version["command"] == ["megavideo", "train", "run=a"]
    assert set(version) >= {"megavideo", "git_commit", "git_dirty", "python", "packages", "command"}
    assert version["packages"]["torch"]
    assert folder.checkpoints.is_dir() and folder.pictures.is_dir() and folder.encoders.is_dir()
    assert folder.metrics == tmp_path / "runs" / "a" / "metrics.jsonl"


def test_reopening_keeps_what_was_there(tmp_path: Path) -> None:
    for text in ("steps: 1\n", "steps: 1\n", "steps: 2\n", "steps: 3\n"):
        folder = create_run_folder(tmp_path, text, ["megavideo"])
    assert folder.config.read_text() == "steps: 3\n"
    assert (tmp_path / "config.1.yaml").read_text() == "steps: 1\n"
    assert (tmp_path / "config.2.yaml").read_text() == "steps: 2\n"
    assert not (tmp_path / "code_version.1.json").exists()


def test_git_state_of_a_repository(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert run_folder._git_state(package) == (None, None)
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    commit, dirty = run_folder._git_state(package)
    assert commit is not None and len(commit) == 40 and dirty is False
    (package / "__init__.py").write_text("x = 1\n")
    assert run_folder._git_state(package) == (commit, True)


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version(["x"])["git_commit"] is None


@pytest.mark.usefixtures("_log_restored")
def test_log_lines_name_rank_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("megavideo.train.loop")
    configure_logging()
    logger.info("hello %d", 3)
    logger.debug("hidden")
    configure_logging(rank=1, world_size=2)
    logger.info("hidden")
    logger.warning("careful")
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert [line.split(" ", 1)[1] for line in lines] == ["hello 3", "[rank 1] warning: careful"]


@pytest.mark.usefixtures("_log_restored")
def test_a_terminal_gets_rich_or_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    configure_logging(rank=0, world_size=2)
    logging.getLogger("megavideo.x").info("step [1/10] done")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    assert "[rank 0] step [1/10] done" in plain
