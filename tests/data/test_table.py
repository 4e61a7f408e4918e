"""Tables of samples: rows by group and size, the same in memory and in files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from megavideo.data.table import make_table, open_table
from megavideo.types import Grid, SampleInfo


def some() -> list[SampleInfo]:
    rng = np.random.default_rng(0)
    return [
        SampleInfo(f"ß{i}", i, Grid(int(rng.integers(1, 4)), 4, 2), int(rng.integers(1, 90)), 8.0, "", source)
        for i, source in enumerate(["films/a.mp4", "films/b.mp4", "web/c.mp4", "d.mp4"] * 25)
    ]


def test_rows_are_the_samples_and_runs_are_of_one_group_and_size() -> None:
    samples = some()
    table = make_table(samples, ["image", "films/*"])
    assert len(table) == 100 and table.groups == ("image", "films/*", "")
    assert sorted(table.index.tolist()) == list(range(100))
    for row in range(100):
        sample = samples[int(table.index[row])]
        assert (table.sample_id(row), table.grid(row), table.text[row]) == (
            sample.sample_id, sample.latent, sample.text_tokens,
        )  # fmt: skip
    assert table.run_begin[0] == 0 and table.run_begin[-1] == 100
    for run, (begin, end) in enumerate(zip(table.run_begin[:-1], table.run_begin[1:], strict=True)):
        for row in range(begin, end):
            sample = samples[int(table.index[row])]
            group = 0 if sample.latent.t == 1 else 1 if sample.source.startswith("films/") else 2
            assert (group, sample.latent.num_tokens) == (table.run_group[run], table.run_volume[run])
        assert (np.diff(table.text[begin:end]) >= 0).all()


def test_files_hold_the_same(tmp_path: Path) -> None:
    table = make_table(some(), ["video"])
    table.save(tmp_path / "table")
    again = open_table(tmp_path / "table")
    assert again.groups == table.groups
    for field in fields(table):
        if field.name != "groups":
            assert isinstance(getattr(again, field.name), np.memmap)
            assert np.array_equal(getattr(again, field.name), getattr(table, field.name))
    assert again.sample_id(7) == table.sample_id(7)


def test_no_samples() -> None:
    table = make_table([])
    assert len(table) == 0 and table.run_begin.tolist() == [0]
