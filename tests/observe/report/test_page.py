"""The page of a run: one file that needs nothing else, with every part where there is something to show."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.report import ReportRun
from megavideo.data.clips.write_video import write_video
from megavideo.errors import DataError
from megavideo.observe.faults import FaultLog
from megavideo.observe.report.cells import loss_maps
from megavideo.observe.report.charts import Marks, draw_loss, draw_saves
from megavideo.observe.report.content import _checkpoint_rows
from megavideo.observe.report.record import changes_since, read_record
from megavideo.observe.report.samples import prompt_rows, read_frames
from megavideo.observe.report.series import read_series
from megavideo.observe.report.summary import RunReport, summarise
from megavideo.observe.report.write import write_report
from megavideo.observe.run_folder import RunFolder
from tests.observe.made_run import PROMPTS, make_run

NO_MARKS = Marks((), (), (), ())


class _Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1] in ("h2", "h3") and data.strip():
            self.headings.append(data.strip())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunReport, _Page]:
    folder = make_run(tmp_path_factory.mktemp("runs") / "curriculum")
    (folder.root / "config.1.yaml").write_text("train: {steps: 90}\n")
    folder.samples.joinpath("step_00000300", "prompts.json").write_text(
        json.dumps([{"prompt": "<script>alert(1)</script>"}, *PROMPTS[1:]])
    )
    folder.samples.joinpath("step_00000200", "01.mp4").write_bytes(b"no video")
    report = write_report(ReportRun(sample_steps=2), folder.root)
    return folder, report, _Page(Path(report.page).read_text(encoding="utf-8"))


def test_page_needs_nothing_else(made: tuple[RunFolder, RunReport, _Page]) -> None:
    _, report, page = made
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    kinds = [address.partition(";")[0] for address in page.addresses]
    assert kinds.count("data:video/mp4") == len(PROMPTS)
    for address in page.addresses:
        if address.startswith("data:image/"):
            image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
            image.load()
            assert image.width > 90
    assert Path(report.page).stat().st_size < 4_000_000


def test_every_part_is_there(made: tuple[RunFolder, RunReport, _Page]) -> None:
    _, report, page = made
    charts = ["Loss", "Loss by level, resolution and duration", "Weights and their average", "Loss by noise level",
              "Gradient norm", "Learning rate", "Memory", "Saves", "Speed", "Use of the hardware", "Data stream",
              "Waiting for data"]  # fmt: skip
    sections = ["Stages", "Curves", "Samples", "Faults: 6", "Checkpoints", "Settings and code"]
    for heading in (*charts, *sections, "Changed since config.1.yaml", *PROMPTS[1:]):
        assert heading in page.headings
    for words in (
        "clip-00057",
        "went on from step 200",
        "1.6 times the median",
        "back to 100",
        "passed over 139; 140",
        "dp8-zero1",
        "abc",
        "clips_512",
    ):
        assert words in page.text
    assert "<script>alert(1)</script>" in page.text  # as text, not as a tag
    assert (report.state, report.step, report.steps, len(report.stages)) == ("finished", 380, 380, 3)


def test_numbers_are_those_of_the_files(made: tuple[RunFolder, RunReport, _Page]) -> None:
    folder, report, _ = made
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert report.whole is not None
    assert report.whole.tokens == sum(row["tokens"] for row in rows)
    assert report.whole.skipped == 3 and report.num_faults == 6
    assert [save.step for save in report.saves] == [50, 100, 150, 200, 250, 300, 350] == list(report.checkpoints)
    assert report.sample_steps == (100, 200, 300)
    assert [(change.setting, change.before) for change in report.changes["config.1.yaml"]][-1] == ("train.steps", 90)


def test_samples_of_steps_and_of_files_that_cannot_be_read(made: tuple[RunFolder, RunReport, _Page]) -> None:
    folder, *_ = made
    rows = prompt_rows(folder.samples, 6, 2, 10**6)
    assert len(rows) == 2 and [still.step for still in rows[0].stills] == [100, 200, 300]
    assert [bool(still.uri) for still in rows[1].stills] == [True, False, True]
    assert [still.step for still in prompt_rows(folder.samples, 1, 1, 0)[0].stills] == [300]
    assert prompt_rows(folder.samples, 6, 1, 10)[0].clip == ""  # larger than what may be put into the page
    assert prompt_rows(folder.samples, 0, 1, 10) == () == prompt_rows(folder.root / "none", 6, 1, 10)
    frames = read_frames(folder.samples / "step_00000300" / "00.mp4")
    assert frames is not None and frames.shape == (9, 64, 96, 3)


def test_large_frames_are_made_small(tmp_path: Path) -> None:
    write_video(tmp_path / "large.mp4", np.zeros((3, 180, 640, 3), np.uint8), 8.0)
    frames = read_frames(tmp_path / "large.mp4")
    assert frames is not None and frames.shape == (3, 63, 224, 3)


def test_each_save_is_told_for_what_it_came_to(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", samples=False)
    (folder.checkpoints / "step_00000100" / "manifest.json").unlink()
    (folder.checkpoints / "step_00000200" / "manifest.json").unlink()
    (folder.checkpoints / "step_00000350" / "manifest.json").unlink()
    FaultLog(folder.faults).write(200, "save_failed", reason="disk full")
    record = read_record(folder.root)
    told = {step: outcome for step, outcome, _ in _checkpoint_rows(summarise(record, folder.report), record)}
    assert (told["100"], told["200"], told["350"]) == ("removed since", "the save failed", "not finished")
    assert told["300"].startswith("2026-03-01")
    folder.config.write_text("checkpoint: {uri: s3://bucket/run, through_folder: false}\n")
    record = read_record(folder.root)
    told = {step: outcome for step, outcome, _ in _checkpoint_rows(summarise(record, folder.report), record)}
    assert (told["100"], told["200"]) == ("to s3://bucket/run", "the save failed")


def test_starts_are_listed_in_their_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        (tmp_path / f"config.{number}.yaml").write_text(f"train: {{steps: {number}}}\n")
    (tmp_path / "config.yaml").write_text("train: {steps: 20}\n")
    assert list(changes_since(read_record(tmp_path))) == ["config.1.yaml", "config.2.yaml", "config.10.yaml"]


def test_empty_and_damaged_folders_have_a_page(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    report = write_report(ReportRun(), tmp_path / "empty")
    assert (report.state, report.step, report.whole) == ("empty", 0, None)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metrics.jsonl").write_text('{"step": 1, "loss": null}\nrubbish\n{"step": 2, "seconds": "x"}\n')
    (broken / "faults.jsonl").write_text('{"step": 1, "kind": "spike", "samples": ["a", {"grid": 3}]}\n[]\n')
    (broken / "validation.jsonl").write_text('{"step": 2, "levels": [0.5], "by_level": [], "cells": []}\n')
    (broken / "code_version.json").write_text("[")
    (broken / "config.yaml").write_bytes(b"\xff: [")
    report = write_report(ReportRun(out=str(tmp_path / "elsewhere" / "page.html")), broken)
    page = _Page((tmp_path / "elsewhere" / "page.html").read_text())
    assert report.damaged == ("metrics.jsonl: 1 damaged lines", "faults.jsonl: 1 damaged lines")
    assert "damaged lines" in page.text and report.step == 2
    with pytest.raises(DataError, match="is no folder"):
        write_report(ReportRun(), tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(ReportRun(out=str(tmp_path / "file" / "page.html")), broken)


def test_loss_maps() -> None:
    cells = [
        {"level": 0.75, "area": 64, "frames": 9, "loss": 0.4, "count": 2},
        {"level": 0.25, "area": 64, "frames": 1, "loss": 0.2},
        {"level": 0.25, "area": 16, "frames": 1, "loss": 0.1, "count": 1},
        {"level": 0.25, "area": 16, "frames": 9, "loss": None, "count": 0},
    ]
    small, large = loss_maps(cells)
    assert (small.area, small.frames, small.losses[0, 0]) == (16, (1,), 0.1)
    assert (large.frames, large.levels) == ((1, 9), (0.25, 0.75))
    assert np.array_equal(large.losses, [[0.2, np.nan], [np.nan, 0.4]], equal_nan=True)
    assert large.counts.tolist() == [[0, 0], [0, 2]]


def test_marks_are_drawn(made: tuple[RunFolder, RunReport, _Page]) -> None:
    series = read_series(made[0].metrics)
    marked = Marks((("images", 1, 120), ("clips", 121, 380)), (230,), (60,), (57, 58))
    for draw in (lambda marks: draw_loss(series, marks, ()), lambda marks: draw_saves(series, marks)):
        plain, with_marks = draw(NO_MARKS), draw(marked)
        assert plain is not None and with_marks is not None and plain.png != with_marks.png


def test_nothing_to_draw(tmp_path: Path) -> None:
    series = read_series(tmp_path / "none")
    assert draw_loss(series, NO_MARKS, ()) is None and draw_saves(series, NO_MARKS) is None
