"""A dataset before a run on it: what a healthy one shows, and each fault by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.doctor import DoctorRun
from megavideo.data.dataset.dataset import open_dataset
from megavideo.errors import ConfigError, DataError
from megavideo.evaluation.dataset_check import check_dataset
from megavideo.evaluation.dataset_page import SampleColumns, draw_histograms
from megavideo.evaluation.dataset_report import DatasetReport
from megavideo.testing.dataset import write_dataset
from megavideo.types import Grid

NUM_SAMPLES = 60
PACKS = DoctorRun(tokens_per_pack=64, text_tokens_per_pack=512, packs_per_step=4, steps=100, dp=2, gpus=4)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that nobody changes."""
    folder = tmp_path_factory.mktemp("doctor") / "dataset"
    write_dataset(str(folder), NUM_SAMPLES)
    return folder


@pytest.fixture
def spoilt(healthy: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(healthy, tmp_path / "spoilt"))


def look(folder: Path | str, **settings: object) -> DatasetReport:
    """The report on the dataset in `folder` for a small run with `settings`."""
    return check_dataset(dataclasses.replace(PACKS, data=str(folder), **settings))  # type: ignore[arg-type]


def shards_of(folder: Path) -> list[Path]:
    """The shards in order."""
    return sorted(folder.glob("shard.*.mds"))


def test_healthy_dataset_has_no_faults(healthy: Path) -> None:
    report = look(healthy)
    samples = open_dataset(str(healthy)).samples
    num_bytes = sum(path.stat().st_size for path in shards_of(healthy))
    tokens = [s.latent.num_tokens // 4 for s in samples]
    assert report.faults == ()
    assert (report.samples, report.images, report.tokens) == (NUM_SAMPLES, 20, sum(tokens))
    assert report.shards.checked == report.shards.count == len(shards_of(healthy))
    assert (report.shards.same_content, report.shards.non_finite, report.same_id) == (0, 0, 0)
    assert report.shards.num_bytes == num_bytes
    assert report.bytes_per_sample == num_bytes / NUM_SAMPLES
    assert sum(report.tokens_per_sample.counts) == sum(report.aspect.counts) == NUM_SAMPLES
    assert report.aspect.edges[0] == min(s.latent.w / s.latent.h for s in samples)


def test_needs_of_the_stream_follow_from_the_packs(healthy: Path) -> None:
    report = look(healthy, tokens_per_second_per_gpu=1000.0)
    packs = report.packs
    assert packs is not None and report.epochs is not None and report.bytes_per_second_per_gpu is not None
    tokens_a_step = packs.fill_mean * 64 * 4
    assert report.epochs == pytest.approx(100 * tokens_a_step / report.tokens, rel=0.05)
    per_token = report.shards.num_bytes / report.tokens
    assert report.bytes_per_second_per_gpu == pytest.approx(1000.0 * per_token, rel=0.05)
    assert report.bytes_per_second == pytest.approx(4 * report.bytes_per_second_per_gpu)
    assert 0.8 < packs.fill_mean <= 1.0 and 0.0 < packs.imbalance_mean < packs.imbalance_worst
    one_rank = look(healthy, dp=1).packs
    assert one_rank is not None and one_rank.imbalance_worst == 0.0


def test_flipped_bit_is_found_and_the_shard_named(spoilt: Path) -> None:
    path = shards_of(spoilt)[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = look(spoilt)
    assert [bad.name for bad in report.shards.bad] == [path.name]
    assert len(report.faults) == 1 and path.name in report.faults[0] and "xxh64" in report.faults[0]
    assert look(spoilt, check_hashes=False).faults == ()


@pytest.mark.parametrize("check_hashes", [True, False])
def test_missing_shard_is_named(spoilt: Path, check_hashes: bool) -> None:
    path = shards_of(spoilt)[2]
    path.unlink()
    report = look(spoilt, check_hashes=check_hashes)
    assert [bad.name for bad in report.shards.bad] == [path.name]
    assert path.name in report.faults[0]


def test_many_bad_shards_are_counted(spoilt: Path) -> None:
    paths = shards_of(spoilt)
    for path in paths:
        path.write_bytes(b"")
    report = look(spoilt)
    assert len(report.shards.bad) == len(paths) > 5
    assert report.faults[-1] == f"{len(paths) - 5} more of {len(paths)} shards are missing or damaged"


def test_samples_that_fit_no_pack(healthy: Path) -> None:
    samples = open_dataset(str(healthy)).samples
    large = [s.sample_id for s in samples if s.latent.num_tokens // 4 > 15]
    report = look(healthy, tokens_per_pack=15)
    assert 0 < report.dropped_count == len(large) < NUM_SAMPLES
    assert {row.name for row in report.dropped} <= set(large)
    assert len(report.faults) == 1 and f"{len(large)} of {NUM_SAMPLES} samples" in report.faults[0]
    assert look(healthy, tokens_per_pack=15, max_dropped_share=0.9).faults == ()


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_nothing_fits(healthy: Path, share: float) -> None:
    report = look(healthy, tokens_per_pack=3, max_dropped_share=share)
    assert (report.dropped_count, report.packs, report.epochs) == (NUM_SAMPLES, None, None)
    assert len(report.faults) == 1 and "tokens_per_pack" in report.faults[0]


def test_equal_and_broken_latents(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), 40, flat=True, grids=(Grid(1, 4, 4),), bad={7: float("inf")}, shard_bytes=4096)
    report = look(tmp_path)
    # four channels of signs: no more than sixteen flat latents, and the broken one
    assert report.shards.same_content is not None and 40 - 17 <= report.shards.same_content < 40
    assert len(report.shards.same_content_first) == 20
    assert (report.shards.non_finite, report.shards.non_finite_first) == (1, ("sample-7",))
    assert len(report.faults) == 1 and "sample-7" in report.faults[0]


def test_shard_of_another_dataset(tmp_path: Path) -> None:
    grids = (Grid(1, 4, 4),)
    write_dataset(str(tmp_path), 8, grids=grids, shard_bytes=1 << 20)
    other = tmp_path / "other"
    write_dataset(str(other), 8, grids=grids, shard_bytes=1 << 20)
    index = json.loads((tmp_path / "index_v1.json").read_bytes())
    data = shards_of(other)[0].read_bytes().replace(b"sample-3", b"sample-9")
    shards_of(tmp_path)[0].write_bytes(data)
    _agree(tmp_path, index, data)
    report = look(tmp_path)
    assert "sample 3 is 'sample-9'" in report.faults[0]


def _agree(folder: Path, index: dict, data: bytes) -> None:
    """Make index and description say that `data` is right."""
    import hashlib

    import xxhash

    index["shards"][0]["raw_data"]["hashes"]["xxh64"] = xxhash.xxh64(data).hexdigest()
    text = json.dumps(index).encode()
    (folder / "index_v1.json").write_bytes(text)
    info = json.loads((folder / "dataset.json").read_bytes())
    info["checksums"]["index_v1.json"] = hashlib.sha256(text).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(info))


def test_page_and_pictures(healthy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = look(healthy, out=str(out), tokens_per_pack=15)
    assert report.page == str(out / "report.html")
    page = (out / "report.html").read_text()
    assert "not ready for this run" in page and "data:image/png" in page and report.dropped[0].name in page
    picture = np.asarray(Image.open(out / "histograms.png").convert("RGB"))
    assert (picture == (0x1F, 0x4E, 0x96)).all(axis=2).sum() > 1000  # what is kept
    assert (picture == (0xD9, 0x8A, 0x5B)).all(axis=2).sum() > 1000  # what is dropped
    assert json.loads((out / "report.json").read_text())["dropped_count"] == report.dropped_count


def test_what_cannot_be_set_up(healthy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset\.json"):
        look(tmp_path)
    with pytest.raises(ConfigError, match="patch"):
        look(healthy, patch=(1, 4, 4))


def test_dataset_in_a_store(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/doctor"
    write_dataset(uri, 16)
    dataset = open_dataset(uri)
    assert look(uri).faults == ()
    name = json.loads(dataset.storage.read_bytes("index.json"))["shards"][0]["raw_data"]["basename"]
    dataset.storage.write_bytes(name, b"x" + dataset.storage.read_bytes(name)[1:])
    report = look(uri)
    assert [bad.name for bad in report.shards.bad] == [name]
    dataset.storage.delete(name)
    for check_hashes in (True, False):
        assert [bad.name for bad in look(uri, check_hashes=check_hashes).shards.bad] == [name]


def test_histograms_take_columns_and_no_objects() -> None:
    """Of 1e8 samples a list of each column would take more memory than the machine has that plans a run."""
    count = 300_000
    values = np.random.default_rng(0).integers(1, 5000, count)
    columns = SampleColumns(np.stack([values] * 3, 1), values, values, np.ones(count), values < 4900)
    draw_histograms(columns, np.zeros(0), PACKS)  # what it imports and keeps is no part of what is measured
    tracemalloc.start()
    draw_histograms(columns, np.zeros(0), PACKS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 90 * count


def test_a_place_for_the_report_that_is_none(healthy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(ConfigError, match=r"out=.*file is a file"):
            look(healthy, out=str(out))
    with pytest.raises(DataError, match="/proc/none: cannot be written"):
        look(healthy, out="/proc/none")
