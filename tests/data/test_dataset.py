from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter, StreamingDataset

from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.dataset.dataset import (
    DatasetInfo,
    checksum,
    info_bytes,
    manifest_row,
    null_text_bytes,
    open_dataset,
    parse_info,
)
from megavideo.data.dataset.index import COLUMNS
from megavideo.data.storage.local import LocalStorage
from megavideo.data.stream.shards import ShardReader
from megavideo.data.table.open import open_samples
from megavideo.encoders.encode.dataset_writer import publish_version, writing_shards
from megavideo.encoders.encode.manifest_file import ManifestFile
from megavideo.errors import DataError
from megavideo.types import Grid, SampleInfo

NULL_TEXT = null_text_bytes(np.zeros((1, 16), np.float16))


def write_version(folder: Path, version: int = 1, num_samples: int = 5) -> DatasetInfo:
    """A version of random latents; sample 3 has two captions."""
    rng = np.random.default_rng(0)
    storage, rows = LocalStorage(folder), []
    with writing_shards(storage, f"shards/{version}", folder / "staging", 4096) as writer:
        for index in range(num_samples):
            sample = SampleInfo(f"s{index}", index, Grid(2, 4, 6), 3, 8.0, f"caption\u2028{index}", f"{index}.mp4")
            captions = [(WeightedCaption(sample.caption, 0.75), 3), (WeightedCaption("short", 0.25), 1)]
            captions = captions if index == 3 else captions[:1]
            texts = [rng.standard_normal((length, 16)).astype(np.float16) for _, length in captions]
            latent = rng.standard_normal((8, 2, 4, 6)).astype(np.float16)
            writer.add(sample, latent, texts, [caption.weight for caption, _ in captions])
            rows.append(manifest_row(sample, (5, 32, 48), captions, scores={"motion": 0.5}))
        shards = writer.finish()
    storage.write_bytes("null_text.safetensors", NULL_TEXT)
    info = DatasetInfo(
        format=2,
        num_samples=num_samples,
        latent_channels=8,
        text_dim=16,
        patch=(1, 2, 2),
        time_ratio=4,
        space_ratio=8,
        dropped=(),
        captions_cut=0,
        checksums={"null_text.safetensors": checksum(NULL_TEXT)},
        version=version,
        psnr_db=30.0,
        psnr_clips=4,
    )
    with tempfile.TemporaryDirectory() as staging:
        manifest = ManifestFile(storage, Path(staging))
        manifest.add(rows)
        return publish_version(storage, info, shards, manifest)


def test_written_and_opened(tmp_path: Path) -> None:
    info = write_version(tmp_path)
    dataset = open_dataset(str(tmp_path))
    assert dataset.info == info == parse_info("x", info_bytes(info))
    assert dataset.samples[3] == SampleInfo("s3", 3, Grid(2, 4, 6), 3, 8.0, "caption\u20283", "3.mp4")
    assert dataset.null_text.shape == (1, 16) and dataset.null_text.dtype == np.float16
    index = json.loads((tmp_path / "index.json").read_bytes())
    assert len(index["shards"]) > 1
    for shard in index["shards"]:
        assert shard["raw_data"]["hashes"]["xxh64"] in shard["raw_data"]["basename"]
    # The stock reader reads it too.
    stream = StreamingDataset(local=str(tmp_path), shuffle=False, batch_size=1, validate_hash="xxh64")
    row = stream[4]
    assert (row["sample_id"], row["caption"], row["fps"]) == ("s4", "caption\u20284", 8.0)
    assert row["latent"].shape == (8, 2, 4, 6) and row["latent"].dtype == np.float16
    assert row["text"].shape == (3, 16)
    lines = (tmp_path / "manifest_v1.jsonl").read_text().split("\n")
    assert [(text["tokens"], text["weight"]) for text in json.loads(lines[3])["captions"]] == [(3, 0.75), (1, 0.25)]
    assert json.loads(lines[3])["scores"] == {"motion": 0.5}


def test_captions_of_a_sample(tmp_path: Path) -> None:
    write_version(tmp_path)
    reader = ShardReader(open_dataset(str(tmp_path)), None)
    one, two = reader.read(2), reader.read(3)
    assert (one.texts, one.weights, len(one.text)) == ((), (), 3)
    assert ([len(text) for text in two.texts], two.weights) == ([3, 1], (0.75, 0.25))
    assert two.text is two.texts[0]


def test_versions_stay(tmp_path: Path) -> None:
    first = write_version(tmp_path, num_samples=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*_v1*")}
    second = write_version(tmp_path, version=2)
    assert len(before) == 3
    # One that is there already is not written again, and can be what is newest again.
    assert write_version(tmp_path, num_samples=4) == first
    assert open_dataset(str(tmp_path)).info == first
    write_version(tmp_path, version=2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*_v1*")} == before
    assert open_dataset(str(tmp_path)).info == second
    assert open_dataset(str(tmp_path), version=1).info == first
    assert ShardReader(open_dataset(str(tmp_path), version=1), None).read(2).fps == 8.0
    with pytest.raises(DataError, match="no version 3; its newest is 2"):
        open_dataset(str(tmp_path), version=3)


def write_format_1(folder: Path) -> bytes:
    """A dataset as it was written before there were versions; gives its `dataset.json`."""
    columns = {name: COLUMNS[name] for name in ("sample_id", "latent", "text", "caption", "fps")}
    rng = np.random.default_rng(0)
    rows = []
    with MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"], size_limit=4096) as writer:
        for index in range(4):
            latent, text = (rng.standard_normal(shape).astype(np.float16) for shape in ((8, 2, 4, 6), (3, 16)))
            fps = np.float64(8.0)
            writer.write({"sample_id": f"s{index}", "latent": latent, "text": text, "caption": "c", "fps": fps})
            row = {"sample_id": f"s{index}", "index": index, "latent": [2, 4, 6], "text_tokens": 3, "fps": 8.0}
            rows.append({**row, "caption": "c", "source": f"{index}.mp4", "pixels": [5, 32, 48]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "null_text.safetensors").write_bytes(NULL_TEXT)
    small = ("null_text.safetensors", "index.json", "manifest.jsonl")
    value = {
        "format": 1, "num_samples": 4, "latent_channels": 8, "text_dim": 16, "patch": [1, 2, 2], "time_ratio": 4,
        "space_ratio": 8, "dropped": [{"file": "a.mp4", "reason": "too small"}], "captions_cut": 0,
        "checksums": {name: checksum((folder / name).read_bytes()) for name in small},
    }  # fmt: skip
    content = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    (folder / "dataset.json").write_bytes(content)
    return content


def test_the_older_format_is_read(tmp_path: Path) -> None:
    content = write_format_1(tmp_path)
    dataset = open_dataset(str(tmp_path))
    assert (dataset.info.version, len(dataset.samples)) == (0, 4)
    assert ShardReader(dataset, None).read(3).text.shape == (3, 16)
    # A run that was started on it finds it the same.
    assert info_bytes(dataset.info) == content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", None, "encoding did not finish"),
        ("dataset.json", b"{", "dataset.json: damaged"),
        ("dataset.json", b'{"format": 9}', "format 9"),
        ("dataset.json", b'{"format": 1}', "dataset.json: damaged"),
        ("dataset.json", b'{"format": 2}', "dataset.json: damaged"),
        ("manifest_v1.jsonl", b"", "manifest_v1.jsonl: damaged"),
        ("manifest_v1.jsonl", None, "manifest_v1.jsonl: cannot be read"),
        ("null_text.safetensors", b"xx", "null_text.safetensors: damaged"),
        ("index_v1.json", b"{}", "index_v1.json: damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    write_version(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as fault:
        open_samples(open_dataset(str(tmp_path)))
    assert "Remedy" in str(fault.value)


def test_an_index_cannot_have_anything_unpickled(tmp_path: Path) -> None:
    """The library's reader would run what a column of encoding `pkl` says."""
    write_version(tmp_path)
    index = json.loads((tmp_path / "index_v1.json").read_bytes())
    place = index["shards"][-1]["column_names"].index("caption")
    index["shards"][-1]["column_encodings"][place] = "pkl"
    data = json.dumps(index).encode()
    (tmp_path / "index_v1.json").write_bytes(data)
    # whoever made the index also made the sum of it in the description
    described = json.loads((tmp_path / "dataset.json").read_bytes())
    described["checksums"]["index_v1.json"] = checksum(data)
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match=r"a column 'caption' of encoding 'pkl'.*Remedy"):
        open_dataset(str(tmp_path))


def test_a_version_has_samples(tmp_path: Path) -> None:
    info = write_version(tmp_path)
    storage = LocalStorage(tmp_path)
    with pytest.raises(ValueError, match="without samples"):
        publish_version(storage, replace(info, num_samples=0), [], ManifestFile(storage, tmp_path))
