"""A table made by several processes: the same files and the same errors, of a folder and of a store, on ranks too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megavideo.data.dataset.dataset import LatentDataset, open_dataset
from megavideo.data.storage.open import open_storage
from megavideo.data.table import writer as table_writer
from megavideo.data.table.open import open_samples
from megavideo.data.table.ordered_pool import in_order
from megavideo.data.table.writer import write_table
from megavideo.errors import DataError
from megavideo.parallel.processes.distributed import Launch
from megavideo.testing.dataset import write_dataset
from megavideo.testing.ranks import run_ranks
from tests.data.test_table import dataset_of, some


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatentDataset:
    """A manifest of many blocks."""
    monkeypatch.setattr("megavideo.data.dataset.manifest._BLOCK_BYTES", 3000)
    return dataset_of(some(2000), tmp_path / "data")


def files(dataset: LatentDataset, folder: Path, processes: int) -> dict[str, bytes]:
    write_table(dataset.manifest, ("image", "films/*"), folder, processes=processes)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_files_are_the_same_for_any_number_of_processes(dataset: LatentDataset, tmp_path: Path) -> None:
    expected = files(dataset, tmp_path / "1", 1)
    assert len(expected) == 12
    for processes in (2, 3):
        assert files(dataset, tmp_path / str(processes), processes) == expected


def test_of_a_store_its_copy_without_a_name_is_shared(s3_bucket: str, dataset: LatentDataset, tmp_path: Path) -> None:
    name = dataset.info.manifest_name
    storage = open_storage(f"{s3_bucket}/data")
    storage.write_bytes(name, (Path(dataset.uri) / name).read_bytes())
    remote = files(replace(dataset, storage=storage), tmp_path / "remote", 2)
    assert remote == files(dataset, tmp_path / "local", 1)


def spoiled(dataset: LatentDataset, *lines: int) -> None:
    """Make these lines no JSON."""
    path = Path(dataset.uri) / dataset.info.manifest_name
    rows = path.read_bytes().splitlines(keepends=True)
    for number in lines:
        rows[number - 1] = rows[number - 1].replace(b"{", b"[", 1)
    path.write_bytes(b"".join(rows))


@pytest.mark.parametrize("processes", [1, 2])
def test_of_several_bad_lines_the_first_is_named(dataset: LatentDataset, tmp_path: Path, processes: int) -> None:
    spoiled(dataset, 1203, 1990, 2000)  # in other blocks, and the sum is not right either
    with pytest.raises(DataError, match=r"/data/manifest_v1\.jsonl: damaged \(line 1203: .*Remedy"):
        files(dataset, tmp_path / "table", processes)


def test_others_see_that_it_moves(dataset: LatentDataset, tmp_path: Path) -> None:
    """Each block is told, so that those who wait do not give up."""
    told: list[int] = []
    write_table(dataset.manifest, (), tmp_path / "table", lambda: told.append(1), processes=2)
    num_blocks = (Path(dataset.uri) / dataset.info.manifest_name).stat().st_size // 3200
    assert num_blocks > 50 and len(told) > num_blocks


def made_by_ranks(launch: Launch, uri: str, cache: str) -> tuple[int, list[int]]:
    """How many tables this rank made, by two processes each, and what it found."""
    made: list[int] = []

    def counted(*given: Any) -> Iterator[Any]:
        made.append(given[-1])
        return in_order(*given)

    table_writer.num_processes = lambda _: 2
    table_writer.in_order = counted  # type: ignore[assignment]
    table = open_samples(open_dataset(uri), ("video",), Path(cache))
    assert made in ([], [2])
    return len(made), [*table.index.tolist(), *table.run_begin.tolist()]


def test_one_of_several_ranks_makes_it_while_the_others_wait(tmp_path: Path) -> None:
    """Ranks that have joined over gloo, and have its threads."""
    uri = str(tmp_path / "data")
    write_dataset(uri, 40)
    found = run_ranks(made_by_ranks, (uri, str(tmp_path / "cache")), tmp_path / "ranks", processes=2)
    assert sorted(made for made, _ in found) == [0, 1]
    table = open_samples(open_dataset(uri), ("video",))
    assert [rows for _, rows in found] == [[*table.index.tolist(), *table.run_begin.tolist()]] * 2
