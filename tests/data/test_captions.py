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
        ({"file": "a", "captions": "x"}, "no list"),
        ({"file": "a", "captions": [{"weight": 1}]}, "without a text"),
        ({"file": "a", "captions": [" "]}, "without a text"),
        ({"file": "a", "captions": [{"text": "x", "weight": 0}]}, "no positive number: 0"),
        ({"file": "a", "captions": [{"text": "x", "weight": True}]}, "no positive number: True"),
        ({"file": "a", "captions": [{"text": "x", "weight": float("nan")}]}, "no positive number: nan"),
        ({"file": "a", "captions": [{"text": "x", "source": 1}]}, '"source"'),
        ({"file": "a", "clip_id": 3, "caption": "x"}, '"clip_id"'),
        ({"file": "a"}, 'no text under "caption"'),
    ],
)
def test_rows_that_are_none(tmp_path: Path, row: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match="line 2") as caught:
        table(tmp_path, {"file": "b", "caption": "good"}, row)
    assert part in str(caught.value) and "Remedy: " in str(caught.value)


def test_sidecars(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    assert read_sidecar_captions(clip) is None
    (tmp_path / "a.json").write_text(json.dumps({"captions": TWO}))
    assert read_sidecar_captions(clip) == (WeightedCaption("short"), WeightedCaption("long", 3.5, "vlm"))
    (tmp_path / "a.json").write_text('{"captions": [1]}')
    with pytest.raises(DataError, match=r"a\.json has an entry"):
        read_sidecar_captions(clip)
