"""The report: self-contained, honest about what is wrong, and readable by a program."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.errors import DataError
from megavideo.evaluation.shapes.render import draw_scene, render
from megavideo.evaluation.shapes.report import ReportRow, animated_gif, write_report
from megavideo.evaluation.shapes.score import Score, score
from megavideo.evaluation.shapes.spec import Combination, caption


def _results() -> tuple[Score, list[ReportRow]]:
    asked = [Combination("red", "circle", "left"), Combination("blue", "square", "up")]
    shown = [asked[0], Combination("blue", "square", "down")]
    clips = [render(draw_scene(c, np.random.default_rng(i))) for i, c in enumerate(shown)]
    rows = [ReportRow(caption(c), clip, 8.0) for c, clip in zip(asked, clips, strict=True)]
    return score(clips, asked), rows


def _loss_png(folder: Path) -> Path:
    path = folder / "loss.png"
    Image.new("RGB", (40, 20), "white").save(path)
    return path


def test_score_json(tmp_path: Path) -> None:
    result, rows = _results()
    write_report(tmp_path / "demo", result, rows, _loss_png(tmp_path), {})
    record = json.loads((tmp_path / "demo" / "score.json").read_text())
    assert {key: record[key] for key in ("prompts", "colour", "shape", "motion")} == {
        "prompts": 2,
        "colour": 1.0,
        "shape": 1.0,
        "motion": 0.5,
    }
    assert record["samples"][1]["prompt"] == "a blue square moves up"
    assert record["samples"][1]["shown"]["motion"] == "down"
    assert record["samples"][1]["right"] == {"colour": True, "shape": True, "motion": False}


def test_page_is_self_contained_and_marks_what_is_wrong(tmp_path: Path) -> None:
    result, rows = _results()
    page = write_report(tmp_path, result, rows, _loss_png(tmp_path), {"steps <&>": "1000"}).read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 1 + 2 * len(rows)
    for source in sources:
        kind, data = re.fullmatch(r"data:image/(png|gif);base64,(.*)", source).groups()  # type: ignore[union-attr]
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == kind.upper()
    assert "http" not in page and "<script" not in page
    assert "steps &lt;&amp;&gt;" in page
    assert page.count('class="mark good"') == 5
    assert page.count('class="mark bad"') == 1 and "motion: down, asked up" in page
    assert page.index("50 %") < page.index("a red circle moves left")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "report.html", "score.json"]


def test_gif_keeps_every_frame_and_the_rate() -> None:
    frames = render(draw_scene(Combination("green", "triangle", "right"), np.random.default_rng(1)))
    picture = Image.open(io.BytesIO(animated_gif(frames, 8.0)))
    assert picture.n_frames == len(frames)  # type: ignore[attr-defined]
    assert picture.info["loop"] == 0
    assert picture.info["duration"] == pytest.approx(125, abs=6)
    picture.seek(len(frames) - 1)
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - frames[-1]).mean() < 6


def test_refuses_a_missing_loss_picture_and_unequal_rows(tmp_path: Path) -> None:
    result, rows = _results()
    with pytest.raises(DataError, match=r"loss\.png"):
        write_report(tmp_path, result, rows, tmp_path / "loss.png", {})
    with pytest.raises(ValueError):
        write_report(tmp_path, result, rows[:1], _loss_png(tmp_path), {})
