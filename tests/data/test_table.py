"""Tables of samples: rows by group and size, in memory, in files, and made from a manifest once for a machine."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from megavideo.data.dataset.dataset import (
    DatasetInfo,
    LatentDataset,
    checksum,
    manifest_line,
    manifest_row,
    open_dataset,
)
from megavideo.data.storage.local import LocalStorage
from megavideo.data.table import open as tables
from megavideo.data.table import row_order
from megavideo.data.table import writer as table_writer
from megavideo.data.table.open import FOLDER_NAME, cache_folder, open_samples
from megavideo.data.table.sample_table import SampleTable, VideoRates, make_table, open_table, video_rates
from megavideo.data.table.writer import write_table
from megavideo.errors import DataError
from megavideo.testing.dataset import write_dataset
from megavideo.types import Grid, SampleInfo


def some(count: int = 100) -> list[SampleInfo]:
    rng = np.random.default_rng(0)
    sources = ("films/a.mp4", "films/b.mp4", "web/c.mp4", "d.mp4")
    return [
        SampleInfo(f"ß{i}", i, Grid(int(rng.integers(1, 4)), 4, 2 * int(rng.integers(1, 3))), int(rng.integers(1, 90)),
                   8.0 + i % 2, "", sources[i % 4])
        for i in range(count)
    ]  # fmt: skip


def dataset_of(samples: list[SampleInfo], folder: Path, *, ratios: bool = True) -> LatentDataset:
    """A dataset that has nothing but a manifest; its rows tell pixels unless the ratios are to."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for sample in samples:
        row = manifest_row(sample, (4 * sample.latent.t, 100 + sample.index, 7), [])
        if ratios:
            del row["pixels"]
        lines.append(manifest_line(row))
    data = "".join(lines).encode()
    (folder / "manifest_v1.jsonl").write_bytes(data)
    info = DatasetInfo(
        format=2, num_samples=len(samples), latent_channels=8, text_dim=16, patch=(1, 2, 2), time_ratio=4,
        space_ratio=8, dropped=(), captions_cut=0, checksums={"manifest_v1.jsonl": checksum(data)},
    )  # fmt: skip
    return LatentDataset(str(folder), info, np.zeros((1, 16), np.float16), LocalStorage(folder))


def same(one: SampleTable, two: SampleTable, *but: str) -> None:
    for field in fields(one):
        if field.name not in but:
            assert np.array_equal(getattr(one, field.name), getattr(two, field.name)), field.name


def test_rows_are_the_samples_and_runs_are_of_one_group_and_size() -> None:
    samples = some()
    table = make_table(reversed(samples), ["image", "films/*"])
    assert len(table) == table.num_samples == 100 and table.groups == ("image", "films/*", "")
    assert sorted(table.index.tolist()) == list(range(100))
    for sample in samples:
        assert (table.sample_id(sample.index), table.grid(sample.index), table.text[sample.index]) == (
            sample.sample_id, sample.latent, sample.text_tokens,
        )  # fmt: skip
    assert [name.decode() for name in table.sample_ids(3, 9)] == [f"ß{i}" for i in range(3, 9)]
    assert table.run_begin[0] == 0 and table.run_begin[-1] == 100
    groups = []
    for run, (begin, end) in enumerate(zip(table.run_begin[:-1], table.run_begin[1:], strict=True)):
        rows = [samples[index] for index in table.index[begin:end].tolist()]
        group = {0 if s.latent.t == 1 else 1 if s.source.startswith("films/") else 2 for s in rows}
        assert (group, {s.latent.num_tokens for s in rows}) == ({table.run_group[run]}, {table.run_volume[run]})
        assert [(s.text_tokens, s.index) for s in rows] == sorted((s.text_tokens, s.index) for s in rows)
        groups.append((table.run_group[run], table.run_volume[run]))
    assert groups == sorted(groups)


def test_files_hold_the_same(tmp_path: Path) -> None:
    table = make_table(some(), ["video"])
    write_table(dataset_of(some(), tmp_path).manifest, ["video"], tmp_path / "table")
    again = open_table(tmp_path / "table")
    same(again, table, "pixels")  # those of the ratios
    assert all(isinstance(getattr(again, f.name), np.memmap) for f in fields(table) if f.name != "groups")
    assert again.sample_id(7) == table.sample_id(7)


def test_no_samples_and_missing_ones() -> None:
    table = make_table([])
    assert len(table) == 0 and table.run_begin.tolist() == [0]
    with pytest.raises(ValueError, match="not 0 to 98"):
        make_table(some()[1:])


def test_order_does_not_depend_on_how_many_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_table(some(500), ["web/*"])
    monkeypatch.setattr(row_order, "_CHUNK", 7)
    same(make_table(some(500), ["web/*"]), whole)
    columns = np.array([[s.latent.num_tokens, s.text_tokens, s.index] for s in some(500)])
    group = np.array([s.source.startswith("web/") for s in some(500)])
    expected = np.lexsort((columns[:, 2], columns[:, 1], columns[:, 0], ~group))
    assert whole.index.tolist() == expected.tolist()


def test_sizes_that_make_no_key() -> None:
    vast = [SampleInfo("a", 0, Grid(2**20, 2**20, 2**20), 2**30, 8.0, "", "")]
    with pytest.raises(DataError, match="too large to be sorted"):
        make_table(vast)


@pytest.mark.parametrize("block_bytes", [1, 700, 1 << 20])
def test_the_table_of_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr("megavideo.data.dataset.manifest._BLOCK_BYTES", block_bytes)
    samples = [replace(s, latent=Grid(s.latent.t, s.latent.h, 2 * s.latent.w)) for s in some()]
    dataset = dataset_of(samples, tmp_path / "data")
    expected = make_table(samples, ["films/*"])
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        table = open_samples(dataset, ["films/*"], cache)
        same(table, expected, "pixels")
        first = samples[0].latent
        assert table.pixels[0].tolist() == [1 + 4 * (first.t - 1), 8 * first.h, 8 * first.w]
    assert dataset.samples == tuple(samples)
    told = open_samples(dataset_of(samples, tmp_path / "data", ratios=False))
    assert told.pixels[5].tolist() == [4 * samples[5].latent.t, 105, 7]


def test_a_table_is_made_once_for_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()
    write = table_writer.write_table

    def counted(*given: object) -> None:
        made[str(given[1])] += 1
        write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("megavideo.data.table.open.write_table", counted)
    cache = tmp_path / "cache"
    dataset = dataset_of(some(), tmp_path / "data")
    for sources in (("image",), (), ("image",), ()):
        open_samples(dataset, sources, cache)
    assert made == {"('image',)": 1, "()": 1}
    other = dataset_of(some(101), tmp_path / "data")
    assert len(open_samples(other, (), cache)) == 101 and len(open_samples(dataset, (), cache)) == 100
    assert made["()"] == 2 and not list(cache.rglob(".writing-*"))


@pytest.mark.parametrize("name", ["text.npy", "groups.json", "id_bytes.npy"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_table_of_which_files_are_missing_or_cut_is_made_anew(tmp_path: Path, name: str, cut: bool) -> None:
    dataset = dataset_of(some(), tmp_path / "data")
    open_samples(dataset, (), tmp_path)
    (path,) = tmp_path.glob(f"{FOLDER_NAME}/*/{name}")
    if cut:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    same(open_samples(dataset, (), tmp_path), open_samples(dataset))


def _open(dataset: LatentDataset, cache: Path, connection: object) -> None:
    table = open_samples(dataset, ["films/*"], cache)
    connection.send((os.stat(next(cache.rglob("index.npy"))).st_ino, table.index.tolist()))  # type: ignore[attr-defined]


def test_ranks_that_start_together_make_one(tmp_path: Path) -> None:
    dataset = dataset_of(some(3000), tmp_path / "data")
    context, answers = multiprocessing.get_context("fork"), []
    ranks = []
    for _ in range(6):
        ours, theirs = context.Pipe()
        rank = context.Process(target=_open, args=(dataset, tmp_path / "cache", theirs))
        rank.start()
        ranks.append((rank, ours))
    for rank, ours in ranks:
        answers.append(ours.recv())
        rank.join(10)
        assert rank.exitcode == 0
    assert answers == answers[:1] * 6
    assert answers[0][1] == make_table(some(3000), ["films/*"]).index.tolist()


def _die_while_making(dataset: LatentDataset, cache: Path) -> None:
    def write(manifest: object, sources: object, folder: Path, moved: object) -> None:
        folder.mkdir()
        (folder / "latent.npy").write_bytes(bytes(1000))
        os.kill(os.getpid(), signal.SIGKILL)

    tables.write_table = write  # type: ignore[assignment]
    open_samples(dataset, (), cache)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    dataset = dataset_of(some(), tmp_path / "data")
    killed = multiprocessing.get_context("fork").Process(target=_die_while_making, args=(dataset, tmp_path))
    killed.start()
    killed.join()
    (left,) = tmp_path.glob(f"{FOLDER_NAME}/.writing-*")
    of_another_machine = left.with_name(left.name.replace(platform.node(), "another-machine"))
    of_another_machine.mkdir()
    open_samples(dataset, ("image",), tmp_path)
    assert killed.exitcode == -signal.SIGKILL and left.exists()  # it may still be made: only its own lock tells
    open_samples(dataset, (), tmp_path)
    assert not left.exists() and of_another_machine.exists()


def test_a_damaged_manifest_leaves_no_table(tmp_path: Path) -> None:
    dataset = dataset_of(some(), tmp_path / "data")
    path = tmp_path / "data" / "manifest_v1.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    for content, message in (
        (b"".join(rows).replace(b"films/b", b"films/x"), "checksum"),
        (b"".join(rows[:-1]), "checksum"),
        (b"".join([*rows, rows[-1]]), "indices are not 0 to 99"),
        (b"".join([rows[1], rows[0], *rows[2:]]), "indices are not"),
        (b"".join(rows)[:-9], "damaged"),
        (b"".join(rows).replace(b'"latent"', b'"latest"'), "latent"),
        (b"".join(rows).replace(b", 4, 4]", b", 3, 4]"), "does not divide by patch"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as fault:
            open_samples(dataset, (), tmp_path / "cache")
        assert "Remedy" in str(fault.value)
        assert [made for made in (tmp_path / "cache").rglob("*") if made.is_dir()] == [tmp_path / "cache" / FOLDER_NAME]
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_samples(dataset, (), tmp_path / "cache")


def test_a_source_that_no_sample_has(tmp_path: Path) -> None:
    dataset = dataset_of(some(), tmp_path / "data")
    with pytest.raises(DataError, match=r"no sample is of plays/\*"):
        open_samples(dataset, ("plays/*",), tmp_path / "cache")


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    dataset = dataset_of(some(), tmp_path / "data")
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(DataError, match=r"table of samples cannot be kept there.*Remedy"):
        open_samples(dataset, (), tmp_path / "cache")


def test_a_store_is_read_through_a_copy(s3_bucket: str, tmp_path: Path) -> None:
    write_dataset(f"{s3_bucket}/data", 30)
    write_dataset(str(tmp_path / "data"), 30)
    remote, local = (open_dataset(uri) for uri in (f"{s3_bucket}/data", str(tmp_path / "data")))
    assert not isinstance(remote.storage, LocalStorage)
    same(open_samples(remote, (), tmp_path / "cache"), open_samples(local))


def test_the_most_common_rate() -> None:
    samples = some(99)
    videos = Counter(s.fps for s in samples if s.latent.t > 1)
    assert video_rates(make_table(samples)) == VideoRates(videos.most_common(1)[0][0], min(videos), max(videos))
    images = [replace(s, latent=Grid(1, 4, 4)) for s in samples]
    assert video_rates(make_table(images)) is None
    two = [replace(s, latent=Grid(2, 4, 4)) for s in samples[:2]]
    assert video_rates(make_table(two)) == VideoRates(8.0, *sorted(s.fps for s in two))


def test_a_home_folder_is_known_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # no shell expands it behind a dotted name
    assert cache_folder("runs", "~/cache") == tmp_path / "cache"
    assert cache_folder("runs", None) == Path("runs/cache")


def test_a_disk_without_room_is_told_before_the_manifest_is_read(small_disk: Path, tmp_path: Path) -> None:
    dataset = dataset_of(some(), tmp_path / "data")
    vast = replace(dataset, info=replace(dataset.info, num_samples=1_000_000))
    (tmp_path / "data" / "manifest_v1.jsonl").unlink()
    with pytest.raises(DataError, match=r"table of samples cannot be kept there .*No space left.*Remedy"):
        open_samples(vast, (), small_disk)
    assert not list(small_disk.rglob("*.npy"))
    with pytest.raises(DataError, match=r"manifest_v1\.jsonl: cannot be read"):
        open_samples(dataset, (), small_disk)
