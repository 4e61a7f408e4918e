"""Caption files: one or several captions a clip, by file or by clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megavideo.data.clips.captions import (
    CaptionTable,
    WeightedCaption,
    caption_row,
    heaviest,
    read_caption_table,
    read_sidecar_captions,
)
from megavideo.errors import DataError

TWO = [{"text": " short ", "weight": 1}, {"text": "long", "weight": 3.5, "source": "vlm"}]


def table(folder: Path, *rows: Any) -> CaptionTable:
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_caption_table(path, folder)


def test_one_caption_is_one_alternative(tmp_path: Path) -> None:
    found = table(tmp_path, {"file": "a.mp4", "caption": " a square "}, {"file": "b.mp4", "caption": ""})
    assert found.captions == {tmp_path / "a.mp4": "a square", tmp_path / "b.mp4": ""}
    assert found.alternatives[tmp_path / "a.mp4"] == (WeightedCaption("a square", 1.0, "given"),)
    assert found.of_clips == {} and found.of("x", tmp_path / "c.mp4") is None


def test_several_captions_with_weights(tmp_path: Path) -> None:
    found = table(
        tmp_path, {"file": "a.mp4", "caption": "unread", "captions": TWO}, {"file": "b", "captions": ["x", "y"]}
    )
    assert found.captions[tmp_path / "a.mp4"] == "long"
    assert found.of(None, tmp_path / "a.mp4") == (WeightedCaption("short"), WeightedCaption("long", 3.5, "vlm"))
    assert found.captions[tmp_path / "b"] == "x"  # of equal weights the first


def test_what_is_written_is_read(tmp_path: Path) -> None:
    captions = (WeightedCaption('a "quoted" \u2028 text', 0.25, "vlm"), WeightedCaption("b", 0.5))
    path = tmp_path / "captions.jsonl"
    path.write_text(caption_row("a.mp4", captions) + caption_row("b.mp4", captions[:1], "id1"), encoding="utf-8")
    found = read_caption_table(path, tmp_path)
    assert found.of(None, tmp_path / "a.mp4") == captions
    assert found.of("id1", tmp_path / "other.mp4") == captions[:1]
    assert json.loads(path.read_text().split("\n")[0])["caption"] == heaviest(captions).text == "b"


def test_clips_of_one_file(tmp_path: Path) -> None:
    rows = [{"file": "a.mp4", "clip_id": f"a{i}", "caption": f"shot {i}"} for i in range(2)]
    alone = {"file": "b.mp4", "clip_id": "b0", "caption": "the only one"}
    found = table(tmp_path, *rows, alone, {"file": "a.mp4", "clip_id": "a0", "caption": "again"})
    assert [found.of(f"a{i}", tmp_path / "a.mp4") for i in range(2)] == [
        (WeightedCaption("shot 0"),),
        (WeightedCaption("shot 1"),),
    ]
    # The caption of one shot is not that of the film; that of a file's only clip is.
    assert found.captions == {tmp_path / "b.mp4": "the only one"}
    assert [(note.line, note.reason.split(" in ")[0]) for note in found.notes] == [
        (4, "has another caption"),
        (1, "has captions of 2 clips of it, found by their clip_id, and none of the whole"),
    ]
    whole = table(tmp_path, *rows, {"file": "a.mp4", "caption": "the film"})
    assert whole.captions == {tmp_path / "a.mp4": "the film"} and whole.notes == ()
    assert whole.of("a1", tmp_path / "a.mp4") == (WeightedCaption("shot 1"),)
    assert whole.of("a9", tmp_path / "a.mp4") == (WeightedCaption("the film"),)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"file": "a", "captions": []}, "no list"),
        ({"file": "a", "captions": "x"}, "captions: it is 'x', and should be a valid array"),
        ({"file": "a", "captions": [{"weight": 1}]}, "captions.0.text: it is missing"),
        ({"file": "a", "captions": [" "]}, "without a text"),
        ({"file": "a", "captions": [{"text": " "}]}, "without a text"),
        ({"file": "a", "captions": [1]}, "captions.0: it is 1, and should be"),
        ({"file": "a", "captions": [{"text": "x", "weight": 0}]}, "captions.0.weight: it is 0, and should be greater"),
        ({"file": "a", "captions": [{"text": "x", "weight": True}]}, "captions.0.weight: it is True, and should be"),
        (
            {"file": "a", "captions": [{"text": "x", "weight": float("nan")}]},
            "captions.0.weight: it is nan, and should",
        ),
        ({"file": "a", "captions": [{"text": "x", "weight": 10**400}]}, "captions.0.weight: "),
        ({"file": "a", "captions": [{"text": "x", "source": 1}]}, "captions.0.source: it is 1, and should be"),
        ({"file": "a", "clip_id": 3, "caption": "x"}, "clip_id: it is 3, and should be"),
        ({"file": "a", "caption": "\ud800"}, "not valid JSON"),
        ({"file": "\udcff", "caption": "x"}, "not valid JSON"),
        ({"file": "n" * 5000, "caption": "x"}, "is no name of a file"),
        ({"file": "a\0b", "caption": "x"}, "is no name of a file"),
        ({"file": "a"}, 'no text under "caption"'),
        (["a"], "and should be an object"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, row: Any, part: str) -> None:
    found = table(tmp_path, {"file": "b", "caption": "good"}, row, {"file": "c", "caption": "good too"})
    assert [path.name for path in found.captions] == ["b", "c"], "one bad row never ends the others"
    assert [note.line for note in found.notes] == [2]
    assert found.notes[0].reason.startswith("no row of captions: ") and part in found.notes[0].reason


@pytest.mark.parametrize("line", [b"[" * 200_000, b'{"file": "a", "caption": ' + b"[" * 200_000, b"\xff\xfe", b"{"])
def test_lines_that_are_no_json(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b'{"file": "b", "caption": "good"}\n' + line + b'\n{"file": "c", "caption": "good too"}')
    found = read_caption_table(path, tmp_path)
    assert len(found.captions) == 2
    assert [note.line for note in found.notes] == [2] and "not valid JSON" in found.notes[0].reason


def test_sidecars(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    assert read_sidecar_captions(clip) is None
    (tmp_path / "a.json").write_text(json.dumps({"captions": TWO}))
    assert read_sidecar_captions(clip) == (WeightedCaption("short"), WeightedCaption("long", 3.5, "vlm"))
    (tmp_path / "a.json").write_text('{"captions": [1]}')
    with pytest.raises(DataError, match=r"a\.json' cannot be used: captions\.0: it is 1, and should be"):
        read_sidecar_captions(clip)
