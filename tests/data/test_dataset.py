from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megavideo.data.dataset import DatasetInfo, checksum, info_bytes, null_text_bytes, open_dataset
from megavideo.data.storage import LocalStorage
from megavideo.encoders.dataset_writer import check_place, complete, writing_dataset
from megavideo.errors import DataError
from megavideo.types import Grid, SampleInfo


def write_dataset(folder: Path, num_samples: int = 5, shard_bytes: int = 4096) -> DatasetInfo:
    """A dataset of random latents."""
    rng = np.random.default_rng(0)
    storage = LocalStorage(folder)
    with writing_dataset(storage, shard_bytes) as writer:
        for index in range(num_samples):
            sample = SampleInfo(f"s{index}", index, Grid(2, 4, 6), 3, 8.0, f"caption\u2028{index}", f"{index}.mp4")
            latent = rng.standard_normal((8, 2, 4, 6)).astype(np.float16)
            writer.add(sample, latent, rng.standard_normal((3, 16)).astype(np.float16), (5, 32, 48))
        files = writer.finish({"null_text.safetensors": null_text_bytes(np.zeros((1, 16), np.float16))})
    info = DatasetInfo(
        format=1,
        num_samples=num_samples,
        latent_channels=8,
        text_dim=16,
        patch=(1, 2, 2),
        time_ratio=4,
        space_ratio=8,
        dropped=(),
        captions_cut=0,
        checksums={name: checksum(data) for name, data in files.items()},
    )
    complete(storage, info, info_bytes(info))
    return info


def test_written_and_opened(tmp_path: Path) -> None:
    from streaming import StreamingDataset

    info = write_dataset(tmp_path)
    dataset = open_dataset(str(tmp_path))
    assert dataset.info == info
    assert dataset.samples[3] == SampleInfo("s3", 3, Grid(2, 4, 6), 3, 8.0, "caption\u20283", "3.mp4")
    assert dataset.null_text.shape == (1, 16) and dataset.null_text.dtype == np.float16
    index = json.loads((tmp_path / "index.json").read_bytes())
    assert len(index["shards"]) > 1
    assert all(shard["raw_data"]["hashes"]["xxh64"] for shard in index["shards"])
    stream = StreamingDataset(local=str(tmp_path), shuffle=False, batch_size=1, validate_hash="xxh64")
    row = stream[4]
    assert (row["sample_id"], row["caption"], row["fps"]) == ("s4", "caption\u20284", 8.0)
    assert row["latent"].shape == (8, 2, 4, 6) and row["latent"].dtype == np.float16
    assert row["text"].shape == (3, 16)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith((".", "encode"))) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", None, "encoding did not finish"),
        ("dataset.json", b"{", "dataset.json: damaged"),
        ("dataset.json", b'{"format": 9}', "format 9"),
        ("dataset.json", b'{"format": 1}', "dataset.json: damaged"),
        ("manifest.jsonl", b"", "manifest.jsonl: damaged"),
        ("manifest.jsonl", None, "manifest.jsonl: cannot be read"),
        ("null_text.safetensors", b"xx", "null_text.safetensors: damaged"),
        ("index.json", b"{}", "index.json: damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    write_dataset(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as fault:
        open_dataset(str(tmp_path))
    assert "Remedy" in str(fault.value)


def test_crash_leaves_nothing_that_opens_and_is_cleared(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="holds a dataset already"):
        check_place(str(tmp_path), overwrite=False)
    storage = check_place(str(tmp_path), overwrite=True)
    with pytest.raises(KeyboardInterrupt), writing_dataset(storage, 4096) as writer:
        for index in range(4):
            sample = SampleInfo(f"s{index}", index, Grid(1, 16, 16), 1, 8.0, "c", "f")
            writer.add(sample, np.zeros((8, 1, 16, 16), np.float16), np.zeros((1, 16), np.float16), (1, 128, 128))
        raise KeyboardInterrupt
    assert (tmp_path / "shard.00000.mds").exists()
    with pytest.raises(DataError, match="did not finish"):
        open_dataset(str(tmp_path))
    # The next attempt needs no overwrite, and leaves none of the old shards.
    check_place(str(tmp_path), overwrite=False)
    (tmp_path / "shard.00099.mds").write_bytes(b"stale")
    write_dataset(tmp_path, num_samples=1)
    assert len(open_dataset(str(tmp_path)).samples) == 1
    assert not (tmp_path / "shard.00099.mds").exists()
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_foreign_shards_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(DataError, match="did not write"):
        check_place(str(tmp_path), overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        check_place(str(tmp_path / "file"), overwrite=False)
