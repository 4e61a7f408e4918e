"""Values that others may write into lists and checkpoints: each ends in one error that names the field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import xxhash

from megavideo.border.names import inside_name, stored_name
from megavideo.border.refused import Refused
from megavideo.checkpoint.contents import contents_of
from megavideo.checkpoint.manifest import MANIFEST, DamagedError, parse_manifest, read_manifest
from megavideo.checkpoint.read import CheckpointReader
from megavideo.data.dataset.rates import NOT_COUNTED, SOURCE_FRAMES, FrameCounts
from megavideo.data.ingest.rows import CLIPS_NAME, ROOT_NAME, clip_line, parse_row, read_clip_list, root_line
from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.errors import CheckpointError, DataError
from megavideo.train.position import read_position
from tests.checkpoint.test_reshard import save_tp

ROW: dict[str, Any] = {
    "frames": 5, "fps": 8.0, "width": 64, "height": 64, "pixel_aspect": 1.0, "is_image": False, "clip_id": "a",
    "file": "a.mp4", "caption": "a square", "captions": [{"text": "a square", "weight": 1.0, "source": "given"}],
}  # fmt: skip


def test_the_row_is_good() -> None:
    row = parse_row(json.dumps(ROW).encode())
    assert parse_row(clip_line(row)) == row


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"crop": [9, 0, 3, 5]}, "crop"), ({"crop": ["a", 0, 3, 5]}, "crop.0"), ({"crop": [-1, 0, 3, 5]}, "crop.0"),
        ({"width": 0}, "width"), ({"width": "64"}, "width"), ({"height": 10**12}, "height"),
        ({"pixel_aspect": 0}, "pixel"),
        ({"caption": None}, "caption"), ({"caption": 3}, "caption"), ({"start": -1}, "start"), ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"), ({"frames": 0}, "frames"),
        ({"captions": [{"text": "a", "weight": -1}]}, "weight"),
        ({"captions": [{"text": "a", "weight": float("nan")}]}, "weight"), ({"file": "../a.mp4"}, "../a.mp4"),
        ({"file": "/etc/passwd"}, "/etc/passwd"), ({"file": "a\0b"}, "a"), ({"clip_id": "\ud800"}, "not valid JSON"),
        ({"scores": {"motion": float("inf")}}, "scores.motion"), ({"transfer": "rgb"}, "transfer"),
    ],
)  # fmt: skip
def test_rows_of_clips_that_are_none(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    line = json.dumps(ROW | change).encode() + b"\n"
    with pytest.raises(Refused) as caught:
        parse_row(line)
    assert field in str(caught.value)
    (tmp_path / CLIPS_NAME).write_bytes(json.dumps(ROW).encode() + b"\n" + line)
    (tmp_path / ROOT_NAME).write_text(root_line(str(tmp_path)))
    with pytest.raises(DataError, match=r"line 2: .*Remedy: run ingest again"):
        read_clip_list(tmp_path)


def _rewritten(folder: Path, change: Any) -> Path:
    """The checkpoint with other values in its manifest, and the digest that goes with them."""
    value = json.loads((folder / MANIFEST).read_text())
    del value["digest"]
    change(value)
    body = json.dumps(value).encode()
    digest = xxhash.xxh64(body).hexdigest()
    (folder / MANIFEST).write_bytes(body[:-1] + f', "digest": "{digest}"}}'.encode())
    return folder


def _set(*path: Any, to: Any) -> Any:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("shapes", "up.weight", to=[-4, -4]), "shapes.up.weight.0"),
        (_set("shapes", "up.weight", to=[10**6, 10**9]), "no more than"),
        (_set("shapes", "up.weight", to="64"), "shapes"),
        (_set("files", 0, "fragments", 0, "start", to="0"), "start"), (_set("step", to=float("nan")), "step"),
        (_set("files", 0, "fragments", 0, "numel", to=10**9), "elements"), (_set("step", to="sixty"), "step"),
        (_set("files", 0, "file", to="a\0b"), "a"), (_set("files", 0, "file", to="../../x"), "../../x"),
        (_set("files", 0, "size_bytes", to="12"), "size_bytes"), (_set("validation_loss", to="low"), "validation_loss"),
        (_set("files", 0, "fragments", 0, "name", to="none"), "has no shape"), (_set("config", to=5), "config"),
        (_set("files", 0, "xxh64", to="\n"), "no xxh64"),
    ],
)  # fmt: skip
def test_manifests_that_are_none(change: Any, told: str, tmp_path: Path) -> None:
    folder = _rewritten(save_tp(tmp_path, 2), change)
    with pytest.raises(DamagedError) as caught:
        read_manifest(folder)
    assert told in str(caught.value) and "\n" not in str(caught.value) and "Remedy" in str(caught.value)


@pytest.mark.parametrize("config", ["- a", "checkpoint: hello", "a: !!python/object/apply:os.abort []", "a: [", "5"])
def test_settings_in_a_manifest_that_are_none(config: str, tmp_path: Path) -> None:
    folder = _rewritten(save_tp(tmp_path, 2), _set("config", to=config))
    if config == "checkpoint: hello":
        assert contents_of(folder).config == {"checkpoint": "hello"}
    else:
        with pytest.raises(DamagedError, match="its settings are damaged"):
            contents_of(folder)


def test_a_key_that_is_not_in_the_file_and_one_that_is_shorter(tmp_path: Path) -> None:
    folder = _rewritten(save_tp(tmp_path, 1), _set("files", 0, "fragments", 0, "key", to="none"))
    name = read_manifest(folder).files[0].fragments[0].name
    with pytest.raises(DamagedError, match="what it holds is not what is told of it"):
        CheckpointReader(folder).whole("weight"), CheckpointReader(folder).whole("ema")
    assert name


def test_files_of_a_checkpoint_that_are_no_files(tmp_path: Path) -> None:
    folder = save_tp(tmp_path, 1)
    path = folder / read_manifest(folder).files[0].file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="it is a FIFO"):
        CheckpointReader(folder).verify()
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to("/dev/zero")
    with pytest.raises(DamagedError, match="it is a device"):
        read_manifest(folder)


def test_progress_that_is_none() -> None:
    assert read_position({"stage": "a", "losses": [1.0, 2.0], "other": 1}, "here").losses == (1.0, 2.0)
    for progress in ({"samples": "many"}, {"passed_over": [-1]}, {"number": 1.5}, {"stage": None}):
        with pytest.raises(CheckpointError, match="its progress is damaged"):
            read_position(progress, "here")


def test_a_manifest_that_was_changed_is_seen() -> None:
    with pytest.raises(DamagedError, match="its text is not what was written"):
        parse_manifest(b'{"format": 3, "step": 1, "digest": "0000000000000000"}', "here")


@pytest.mark.parametrize("dim", [7, 65537, 999_999_999])
def test_a_width_of_text_that_no_model_takes(dim: int, tmp_path: Path) -> None:
    (tmp_path / "bytes_text.json").write_text(json.dumps({"dim": dim, "max_tokens": 8}))
    with pytest.raises(DataError, match=r"bytes_text\.json: damaged .*dim"):
        BytesTextEncoder.load(tmp_path)


def test_a_row_that_tells_more_of_its_frames_than_there_is_to_tell() -> None:
    told = {"total": 9, "used": 5, "skipped": 0, "doubled": 0, "else": "x", "single": "x"}
    counts = NOT_COUNTED.with_rows([{SOURCE_FRAMES: told, "latent": [2, 4, 4]}])
    assert counts == FrameCounts(total=9, used=5)


@pytest.mark.parametrize("name", ["n" * 256, "é" * 128, "/".join(["directory"] * 110)])
def test_names_longer_than_a_file_can_have(name: str) -> None:
    with pytest.raises(Refused, match="longer than names of files") as caught:
        inside_name(name)
    assert len(str(caught.value)) < 400
    assert inside_name("n" * 255) == "n" * 255


@pytest.mark.parametrize("name", ["shard.0\n0002.mds", "shard\x1b[31m.mds", "shard\u2028.mds"])
def test_names_that_no_person_gave_break_no_line(name: str) -> None:
    with pytest.raises(Refused, match="cannot be printed"):
        stored_name(name)
    assert inside_name(name) == name
