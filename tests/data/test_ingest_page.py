"""The report page holds every number and picture in one file."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest import ingest
from megavideo.errors import DataError
from tests.data.clip_files import write_captions, write_clip
from tests.data.test_ingest_cuts import texture


def test_page_shows_each_outcome(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    write_clip(src / "a.mp4", np.concatenate([texture(0, 20, 48, 96), texture(1, 20, 48, 96)]), fps=20)
    (src / "b <i>.mp4").write_bytes((src / "a.mp4").read_bytes())
    write_clip(src / "still.mp4", np.repeat(texture(2, 1, 48, 48), 9, axis=0))
    Image.fromarray(texture(3, 1, 64, 40)[0]).save(src / "picture.png")
    (src / "bad.mp4").write_bytes(b"<script>")
    write_clip(src / "silent.mp4", texture(4, 5, 32, 32))
    named = ("a.mp4", "b <i>.mp4", "still.mp4", "picture.png", "gone.mp4")
    write_captions(src, dict.fromkeys(named, "x"))
    report = ingest(IngestRun(src=str(src), out=str(out), filters=FiltersConfig(min_motion=0.0)))
    assert report.page == str(out / "report.html")
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(asdict(report)))
    # Every input and every piece is accounted for.
    assert (report.num_inputs, report.inputs_kept, report.inputs_dropped, report.inputs_waiting) == (6, 2, 4, 0)
    assert (report.num_clips, report.num_images, report.num_dropped) == (3, 1, 5)
    assert report.dropped_by_kind == {"duplicate": 2, "caption": 1, "static": 1, "unreadable": 1}
    page = (out / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    for words in (
        "duplicate 2",
        "static 1",
        "unreadable 1",
        "caption 1",
        "Kept: 3 of 3",
        "Dropped as duplicate: 2 of 2",
    ):
        assert words in re.sub(r"\s+", " ", text), words
    for words in ("change 0 is below 1.5", "repeats a.mp4 from frame 20", "no caption", "no such file", "picture.png"):
        assert words in text
    assert "b &lt;i&gt;.mp4" in page and "<i>" not in page and "http" not in page
    charts = re.findall(r"data:image/png;base64,([^\"]+)", page)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(charts) == 1 and len(pictures) == 6
    sizes = sorted(Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures)
    assert sizes == [(100, 160), (160, 80), (160, 80), (160, 80), (160, 80), (160, 160)]
    chart = np.asarray(Image.open(io.BytesIO(base64.b64decode(charts[0]))).convert("RGB")).reshape(-1, 3)
    for colour in ("#1f4e96", "#d98a5b", "#b3302b"):  # kept, dropped, threshold
        rgb = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert (np.abs(chart.astype(int) - rgb).max(axis=1) < 12).sum() > 50


def test_page_of_a_run_without_any_clip_kept(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write_clip(tmp_path / "src" / "a.mp4", texture(0, 5, 32, 32))
    write_captions(tmp_path / "src", {"a.mp4": "x"})
    cfg = IngestRun(src=str(tmp_path / "src"), out=str(tmp_path / "out"), filters=FiltersConfig(min_seconds=9.0))
    with pytest.raises(DataError, match=r"none of 1 clips can be used \(a.mp4: 0.625 s are less than min_seconds=9\)"):
        ingest(cfg)
    assert "short" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_without_any_clip_kept_leaves_no_list_of_an_earlier_one(tmp_path: Path) -> None:
    src, out = str(tmp_path / "src"), tmp_path / "out"
    (tmp_path / "src").mkdir()
    write_clip(tmp_path / "src" / "a.mp4", texture(0, 5, 32, 32))
    write_captions(tmp_path / "src", {"a.mp4": "x"})
    ingest(IngestRun(src=src, out=str(out)))
    assert (out / "clips.jsonl").exists()
    with pytest.raises(DataError, match="none of 1 clips"):
        ingest(IngestRun(src=src, out=str(out), filters=FiltersConfig(min_seconds=9.0)))
    assert not (out / "clips.jsonl").exists() and json.loads((out / "report.json").read_text())["num_clips"] == 0
