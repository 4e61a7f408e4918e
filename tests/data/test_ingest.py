from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest import ingest, read_clip_list
from megavideo.errors import ConfigError, DataError
from tests.data.clip_files import moving_square, write_captions, write_clip


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "a.mp4", moving_square(9, 48, 64))
    write_clip(folder / "sub" / "b.MKV", moving_square(5, 32, 32), fps=25)
    Image.fromarray(moving_square(1, 20, 30)[0]).save(folder / "c.png")
    (folder / ".hidden.mp4").write_bytes(b"x")
    (folder / "notes.md").write_text("no clip")
    return folder


def test_real_clips(real_clips: Path, tmp_path: Path) -> None:
    report = ingest(IngestRun(src=str(real_clips), out=str(tmp_path)))
    assert (report.num_inputs, report.inputs_kept, report.inputs_dropped) == (16, 14, 2)
    assert {clip.file: clip.kind for clip in report.dropped} == {
        "corrupted.mp4": "unreadable",
        "nasa.mp4": "transition",
        "unordered.mov": "caption",
    }
    rows = read_clip_list(tmp_path).rows
    assert len(rows) == report.num_clips == 26
    # Seen by a person in the stills: each frame that begins a new shot, from 0. In nasa.mp4 127 begins a dissolve of
    # some 20 frames.
    starts = {file: [row.start for row in rows if row.file == file] for file in {row.file for row in rows}}
    assert {file: frames for file, frames in starts.items() if len(frames) > 1} == {
        "bikes.mp4": [0, 30, 76, 137, 187, 242],
        "scene_cuts.mp4": [0, 30, 76, 137, 187, 242],
        "nasa.mp4": [0, 149, 202],
    }
    assert all(row.crop is None for row in rows)
    sizes = {row.file: (row.frames, row.width, row.height) for row in rows}
    assert sizes["rotated_90.mov"] == (3, 320, 568)
    assert sizes["pancake.mkv"] == (310, 426, 240)
    assert sizes["av1.mkv"] == (125, 640, 360)


def test_jsonl_and_sidecars(clips: Path, tmp_path: Path) -> None:
    write_captions(clips, {"a.mp4": " a square "})
    (clips / "sub" / "b.txt").write_text("from \u2028 text\n")
    (clips / "c.json").write_text('{"caption": "from json"}')
    out = tmp_path / "out"
    report = ingest(IngestRun(src=str(clips), out=str(out)))
    assert (report.num_clips, report.num_images, report.num_frames, report.dropped) == (3, 1, 15, ())
    listed = read_clip_list(out)
    assert {row.file: row.caption for row in listed.rows} == {
        "a.mp4": "a square",
        "c.png": "from json",
        "sub/b.MKV": "from \u2028 text",
    }
    assert all(listed.path(row).is_file() for row in listed.rows)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(asdict(report)))
    before = (out / "clips.jsonl").read_bytes()
    ingest(IngestRun(src=str(clips), out=str(out)))
    assert (out / "clips.jsonl").read_bytes() == before


def test_bad_clips_are_reported_and_skipped(clips: Path, tmp_path: Path) -> None:
    (clips / "bad.mp4").write_bytes(b"not a video at all")
    write_clip(clips / "z.mp4", moving_square(2, 32, 32))
    write_clip(clips / "y.mp4", moving_square(2, 32, 32))
    (clips / "y.json").write_text('{"title": 3}')
    write_captions(clips, {"a.mp4": "x", "c.png": "   ", "bad.mp4": "y", "gone.mp4": "z"})
    with (clips / "captions.jsonl").open("a") as file:
        file.write('\n{"file": "a.mp4", "caption": "other"}\n')
    report = ingest(IngestRun(src=str(clips), out=str(tmp_path / "out")))
    reasons = {clip.file: clip.reason for clip in report.dropped}
    assert report.num_clips == 1
    assert report.dropped_by_kind == {"caption": 4, "unreadable": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {line["file"]: line["reason"] for line in lines} == reasons
    assert set(reasons) == {"bad.mp4", "c.png", "sub/b.MKV", "y.mp4", "z.mp4"}
    assert "damaged" in reasons["bad.mp4"]
    assert reasons["c.png"] == "its caption is empty"
    assert reasons["sub/b.MKV"] == reasons["z.mp4"] == "no caption"
    assert '"caption"' in reasons["y.mp4"]
    notes = {(note.line, note.reason) for note in report.caption_notes}
    assert (4, "no such file") in notes
    assert any(line == 6 and "line 1" in reason for line, reason in notes)


def test_single_file_and_own_captions_file(clips: Path, tmp_path: Path) -> None:
    captions = tmp_path / "my.jsonl"
    captions.write_text('\ufeff{"file": "a.mp4", "caption": "mine"}\n{"file": "c.png", "caption": "other"}\n')
    report = ingest(IngestRun(src=str(clips / "a.mp4"), out=str(tmp_path / "out"), captions=str(captions)))
    assert (report.num_clips, report.caption_notes) == (1, ())
    assert read_clip_list(tmp_path / "out").rows[0].caption == "mine"


def test_out_inside_src_is_left_out(clips: Path) -> None:
    write_captions(clips, {"a.mp4": "x"})
    ingest(IngestRun(src=str(clips), out=str(clips / "out")))
    write_clip(clips / "out" / "stray.mp4", moving_square(2, 32, 32))
    report = ingest(IngestRun(src=str(clips), out=str(clips / "out")))
    assert "out/stray.mp4" not in {clip.file for clip in report.dropped}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "no such file or folder"),
        ("empty", "holds no video or image"),
        ("no captions", "none of 3 clips has a caption"),
        ("captions missing", "no such captions file"),
        ("bad row", "line 1: no row of captions: caption: it is 3"),
        ("not utf-8", "line 1: no row of captions: not valid JSON"),
        ("all damaged", "none of 1 clips can be used"),
        ("text file", "not a video or image"),
    ],
)
def test_whole_run_faults(clips: Path, tmp_path: Path, change: str, message: str) -> None:
    src, captions = clips, None
    table = clips / "captions.jsonl"
    if change == "missing":
        src = tmp_path / "nowhere"
    elif change == "empty":
        src = tmp_path / "empty"
        src.mkdir()
    elif change == "captions missing":
        captions = str(tmp_path / "no.jsonl")
    elif change == "bad row":
        table.write_text('{"file": "a.mp4", "caption": 3}\n')
    elif change == "not utf-8":
        table.write_bytes(b'{"file": "a.mp4", "caption": "\xff"}\n')
    elif change == "all damaged":
        src = tmp_path / "damaged"
        src.mkdir()
        (src / "a.mp4").write_bytes(b"x")
        write_captions(src, {"a.mp4": "x"})
    elif change == "text file":
        src = clips / "notes.md"
    with pytest.raises(DataError, match=message) as fault:
        ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), captions=captions))
    assert "Remedy" in str(fault.value)
    assert not (tmp_path / "out" / "clips.jsonl").exists()


def test_captions_of_single_clips(tmp_path: Path) -> None:
    """Captions that were written for the clips of an earlier ingest are given to these, and need no decoding."""
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    shots = [moving_square(12, 48, 64), 255 - moving_square(12, 48, 64, (10, 200, 30))[:, ::-1]]
    write_clip(src / "a.mp4", np.concatenate(shots))
    write_captions(src, {"a.mp4": "two shots"})
    ingest(IngestRun(src=str(src), out=str(out)))
    first, second = read_clip_list(out).rows
    assert (first.start, second.start, first.caption, second.caption) == (0, 12, "two shots", "two shots")
    part = next((out / "parts").rglob("*.json"))
    written = part.stat().st_mtime_ns
    own = tmp_path / "own.jsonl"
    captions = [{"text": "green", "weight": 2.0}, {"text": "a green square", "weight": 1.0}]
    own.write_text(json.dumps({"file": "a.mp4", "clip_id": second.clip_id, "captions": captions}) + "\n")
    own.write_text(own.read_text() + json.dumps({"file": "a.mp4", "clip_id": "other", "caption": "x"}) + "\n")
    report = ingest(IngestRun(src=str(src), out=str(out), captions=str(own)))
    (row,) = read_clip_list(out).rows
    assert (row.clip_id, row.caption) == (second.clip_id, "green")
    assert [caption.text for caption in row.captions] == ["green", "a green square"]
    assert [(clip.clip_id, clip.kind) for clip in report.dropped] == [(first.clip_id, "caption")]
    assert (2, "no clip has the clip_id other") in {(note.line, note.reason) for note in report.caption_notes}
    assert len(report.caption_notes) == 2  # and that the file has captions of single clips only
    assert part.stat().st_mtime_ns == written


def test_a_list_of_an_earlier_format_is_read(tmp_path: Path) -> None:
    row = {"clip_id": "1", "file": "a.mp4", "frames": 9, "fps": 8.0, "width": 64, "height": 48, "pixel_aspect": 1.0}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row | {"is_image": False, "caption": "x"}) + "\n")
    (tmp_path / "ingest.json").write_text('{"format": 1, "root": "/"}')
    (read,) = read_clip_list(tmp_path).rows
    assert (read.start, read.crop, read.anchor) == (0, None, None)


def test_object_stores_are_refused(clips: Path) -> None:
    with pytest.raises(ConfigError, match="local folder"):
        ingest(IngestRun(src=str(clips), out="s3://bucket/x"))


def test_damaged_list(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text('{"clip_id": 1}\n')
    (tmp_path / "ingest.json").write_text('{"root": "/"}')
    with pytest.raises(DataError, match="cannot be read"):
        read_clip_list(tmp_path)
