"""`megavideo report`: the page and its numbers, by words and by settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavideo.cli.main import main
from megavideo.cli.verbs.report import VERB
from megavideo.observe.report.record import read_record
from megavideo.observe.report.summary import summarise
from tests.observe.made_run import make_run


def test_numbers_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=130, samples=False).root
    assert main(["report", f"run={run}", f"out={tmp_path / 'page.html'}", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["step"], found["steps"], found["page"]) == (130, 380, str(tmp_path / "page.html"))
    assert [stage["name"] for stage in found["stages"]] == ["images_256", "clips_256"]
    assert "<h2>Stages</h2>" in (tmp_path / "page.html").read_text()
    shown = VERB.describe(summarise(read_record(run), tmp_path / "page.html"))
    assert "images_256: steps 1 to 120" in shown and "2 skipped steps" in shown


def test_a_run_without_a_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].endswith("nothing was written here yet") and lines[-1] == f"page    {tmp_path / 'report.html'}"
    assert (tmp_path / "report.html").is_file()


def test_which_run_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([], "run: is required"),
        ([str(tmp_path / "none")], "is no folder"),
        ([str(tmp_path), f"run={tmp_path}"], "takes one run"),
        ([str(tmp_path), str(tmp_path)], "takes one run"),
    ):
        assert main(["report", *words]) == 2
        assert said in capfd.readouterr().err
