"""Captions found by an index of their rows: the same as of a table in memory."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.captions import read_caption_table
from megavideo.data.ingest import caption_index as index_module
from megavideo.data.ingest import ingest
from megavideo.data.ingest.caption_index import CaptionIndex
from megavideo.data.ingest.find import Captions
from megavideo.errors import DataError
from tests.data.clip_files import write_captions, write_clip
from tests.data.test_ingest_cuts import texture


def made_rows(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows of files and of clips, some of them twice, some of files with several clips."""
    for _ in range(200):
        row: dict[str, Any] = {"file": f"sub/{rng.randrange(60)} é.mp4"}
        text = f"text {rng.randrange(4)}"
        row |= {"caption": text} if rng.random() < 0.7 else {"captions": [{"text": text, "weight": 2}, "other"]}
        yield row | ({"clip_id": f"clip-{rng.randrange(90)}"} if rng.random() < 0.5 else {})


@pytest.mark.parametrize("seed", range(4))
def test_an_index_finds_what_a_table_holds(seed: int, tmp_path: Path) -> None:
    rows = list(made_rows(random.Random(seed)))
    path = tmp_path / "captions.jsonl"
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=seed % 2 == 0) for row in rows))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "7 é.mp4").write_bytes(b"x")
    table, index = read_caption_table(path, tmp_path), CaptionIndex(path, tmp_path)
    names = [f"sub/{number} é.mp4" for number in range(62)]
    ids = [f"clip-{number}" for number in range(92)]
    assert [index.of_file(tmp_path / name) for name in names] == [table.of(None, tmp_path / name) for name in names]
    assert [index.of_clip(clip_id) for clip_id in ids[::2]] == [table.of_clips.get(clip_id) for clip_id in ids[::2]]
    assert index.has_clips and len(table.notes) > 20
    assert sorted(map(repr, index.notes)) == sorted(map(repr, table.notes))
    known = names[:30]
    expected = table.unknown({tmp_path / name for name in known})
    assert len(expected) > 5 and sorted(map(repr, index.unknown_files(known))) == sorted(map(repr, expected))
    missed = [note for clip_id, note in table.unless_found.items() if clip_id not in ids[::2]]
    assert missed and sorted(map(repr, index.unknown_clips())) == sorted(map(repr, missed))
    index.close()


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a.mp4", "clip_id": "one", "caption": "x"}\n{"file": "b.mp4", "caption": "y"}\n')
    monkeypatch.setattr(index_module, "_hash", len)
    index = CaptionIndex(path, tmp_path)
    assert index.of_clip("one") is not None and index.of_clip("two") is None
    assert index.of_file(tmp_path / "b.mp4") is not None and index.of_file(tmp_path / "c.mp4") is None
    index.close()


def test_a_broken_row_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a.mp4", "caption": "x"}\n\n{"file": 3}\n')
    with closing(Captions(tmp_path, None)) as captions:
        captions.check(["a.mp4"])
        assert [(note.file, note.line, note.reason) for note in captions.notes(["a.mp4"], all_known=True)] == [
            ("captions.jsonl", 3, "no row of captions: file: it is 3, and should be a valid string")
        ]
    path.write_text('{"file": 3}\n')
    with (
        closing(Captions(tmp_path, None)) as captions,
        pytest.raises(DataError, match=r"captions\.jsonl, line 1: no row of captions: .*nor is any other"),
    ):
        captions.check(["a.mp4"])
    path.write_text("\n")
    with closing(Captions(tmp_path, None)) as captions, pytest.raises(DataError, match="none of 1 clips has a caption"):
        captions.check(["a.mp4"])


def test_one_of_many_tasks_reads_the_captions_before_the_last_step(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for number in range(4):
        write_clip(src / f"{number}.mp4", texture(number, 5, 32, 32))
    (src / "captions.jsonl").write_text("no row")
    with pytest.raises(DataError, match=r"captions\.jsonl, line 1: no row of captions: not valid JSON"):
        ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), shard="0/2"))
    report = ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), shard="1/2"))
    assert 0 < report.inputs_waiting < 4 and report.caption_notes == ()
    write_captions(src, {f"{number}.mp4": "x" for number in range(4)})
    assert ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), shard="0/2")).num_clips == 4
