"""What a run trains on: ranges of pixels, bad samples, held-out ones; and what each rule leaves out."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.step_plan import PlanSettings, StepPlan
from megavideo.data.table import sample_table as table_module
from megavideo.data.table import selection as selection_module
from megavideo.data.table.held_out import held_out
from megavideo.data.table.open import FOLDER_NAME, open_samples, open_selected
from megavideo.data.table.sample_table import SampleTable, make_table
from megavideo.data.table.selection import Selected, Selection, read_ids, select, selection_of
from megavideo.errors import ConfigError, DataError
from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_config
from megavideo.types import Grid, SampleInfo

SIDES = (128, 256, 512, 720)
FRAMES = (1, 1, 17, 33, 65, 129)


def table_of(count: int, first: int = 0) -> SampleTable:
    """Sample i is of FRAMES[i % 6] frames and side SIDES[i % 4]; every 24th of the same size."""
    infos = [
        SampleInfo(f"s{first + i}", i, Grid(1 + FRAMES[i % 6] // 4, SIDES[i % 4] // 8, SIDES[i % 4] // 8), 9, 8.0, "",
                   "film/x" if i % 5 else "web/y")
        for i in range(count)
    ]  # fmt: skip
    pixels = [(FRAMES[i % 6], SIDES[i % 4], SIDES[i % 4]) for i in range(count)]
    return replace(make_table(infos, ["film/*"]), pixels=np.array(pixels, np.int32).reshape(-1, 3))


def ids(table: SampleTable) -> set[str]:
    return {table.sample_id(sample) for sample in table.index.tolist()}


@pytest.mark.parametrize("together", [7, 1 << 18])
def test_ranges_of_pixels_include_their_ends(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    for module in (table_module, selection_module):
        monkeypatch.setattr(module, "CHUNK", together)
    table = table_of(240)
    found = select(table, Selection(area=(256 * 256, 512 * 512), frames=(17, 65)))
    expected = {i for i in range(240) if SIDES[i % 4] in (256, 512) and FRAMES[i % 6] in (17, 33, 65)}
    assert set(found.table.index.tolist()) == expected and len(found.table) == len(expected)
    left = found.left_out
    assert (left.num_samples, left.area, left.num_left) == (240, 120, len(expected))
    assert left.frames == 120 - len(expected) and (left.excluded, left.held_out, left.unknown) == (0, 0, 0)
    one = select(table, Selection(frames=(1, 1)))
    assert {FRAMES[i % 6] for i in one.table.index.tolist()} == {1}


def test_rows_that_are_left_keep_their_order_and_runs() -> None:
    table = table_of(240)
    found = select(table, Selection(area=(1, 300 * 300), excluded=frozenset({"s3", "s24"}))).table
    kept = [i for i in table.index.tolist() if SIDES[i % 4] < 300 and i not in (3, 24)]
    assert found.index.tolist() == kept
    assert found.run_begin[0] == 0 and found.run_begin[-1] == len(kept) and (np.diff(found.run_begin) > 0).all()
    for run, (begin, end) in enumerate(zip(found.run_begin[:-1], found.run_begin[1:], strict=True)):
        rows = found.index[begin:end]
        assert {int(table.latent[i].prod()) for i in rows} == {found.run_volume[run]}
        assert {0 if i % 5 else 1 for i in rows.tolist()} == {found.run_group[run]}


def test_the_plan_is_made_of_what_is_left() -> None:
    found = select(table_of(240), Selection(num_held_out=10, frames=(1, 40), excluded=frozenset({"s0"})))
    limits = PackLimits(200_000, 4096, 64)
    plan = StepPlan(found.table, PlanSettings((1, 2, 2), limits, 1, 0, weights={"film/*": 2.0}))
    seen = {s.sample_id for step in range(plan.packs_per_cycle) for pack in plan.step(step) for s in pack}
    assert seen == ids(found.table) and "s0" not in seen and len(seen) == found.left_out.num_left
    assert not set(found.held_out.tolist()) & set(found.table.index.tolist())
    # a source that a stage leaves out altogether is no error: the dataset has it
    films = select(table_of(240), Selection(excluded=frozenset(f"s{i}" for i in range(0, 240, 5)))).table
    StepPlan(films, PlanSettings((1, 2, 2), limits, 1, 0, weights={"film/*": 2.0})).step(0)


def test_ids_that_no_sample_has_are_told(caplog: pytest.LogCaptureFixture) -> None:
    found = select(table_of(48), Selection(excluded=frozenset({"s7", "s700", "other"})))
    assert ids(found.table) == {f"s{i}" for i in range(48) if i != 7}
    assert (found.left_out.excluded, found.left_out.unknown) == (1, 2)
    caplog.set_level(logging.INFO)
    found.left_out.log()
    told, unknown = (record.getMessage() for record in caplog.records)
    assert told.startswith("training on 47 of 48 samples; left out: guard.exclude 1, validation.clips 0")
    assert unknown == "guard.exclude: 2 of its ids are of no sample of the dataset: other, s700"
    caplog.clear()
    select(table_of(48), Selection(area=(1, 10**9))).left_out.log()
    assert not caplog.records


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(area=(1, 99)), r"data\.area \(\(1, 99\)\) leaves out all of the 48 samples.*Remedy"),
        (Selection(area=(1, 128 * 128), frames=(33, 33)), r"data\.frames .* all of the 12 samples .* left of 48"),
        (Selection(excluded=frozenset(f"s{i}" for i in range(48))), r"guard\.exclude \(its 48 ids\) leaves out all"),
        (Selection(num_held_out=48), r"validation\.clips=48: so many held-out samples of 48 leave none.*Remedy"),
    ],
)
def test_where_nothing_is_left_the_rule_is_named(selection: Selection, message: str) -> None:
    with pytest.raises(DataError, match=message):
        select(table_of(48), selection)


def test_ids_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(" s1 \n\ns2\r\nß\u20283\n")
    assert read_ids(str(path)) == {"s1", "s2", "ß\u20283"}
    with pytest.raises(ConfigError, match=r"guard\.exclude=.*gone.*cannot be read \(No such file.*Remedy"):
        read_ids(str(tmp_path / "gone"))
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_ids(str(path))


def test_the_selection_of_a_run(tmp_path: Path) -> None:
    assert selection_of(micro_config(data__uri="x")) == Selection()
    (tmp_path / "bad").write_text("a\n")
    asked = {"data__area": "[4096,65536]", "data__frames": "[1,17]", "guard__exclude": tmp_path / "bad"}
    given = {**asked, "validation__every": 5, "validation__clips": 3}
    expected = Selection(frozenset({"a"}), 3, (4096, 65536), (1, 17))
    assert selection_of(micro_config(data__uri="x", **given)) == expected
    other = micro_config(data__uri="x", **given, validation__uri="y")
    assert selection_of(other) == replace(expected, num_held_out=0)


def kinds(table: SampleTable, samples: np.ndarray) -> Counter[tuple[int, int]]:
    return Counter((int(f), int(h)) for f, h, _ in table.pixels[samples])


def test_held_out_samples_are_of_all_sizes() -> None:
    table = table_of(2400)
    chosen = held_out(table, 32)
    assert len(set(chosen.tolist())) == 32 and chosen.tolist() == sorted(chosen.tolist())
    found = kinds(table, chosen)
    assert len(found) == len(kinds(table, np.arange(2400))) == 12
    assert max(found.values()) - min(found.values()) <= 2  # (strata are octaves: 512 and 720 are of one)
    two = kinds(table, held_out(table, 2))
    assert sorted(frames > 1 for frames, _ in two) == [False, True]


def test_held_out_samples_stay_when_data_is_added() -> None:
    small, large = table_of(1200), table_of(2400)
    before, after = set(held_out(small, 24).tolist()), set(held_out(large, 24).tolist())
    assert len(before & after) >= 8  # about half of them, as there are twice as many that may come first
    # what is added to other strata takes nothing from a stratum but shares
    images = [i for i in range(1200) if FRAMES[i % 6] == 1]
    only = set(held_out(select(small, Selection(frames=(1, 1))).table, 24).tolist())
    both = set(held_out(small, 60).tolist()) & set(images)
    assert both <= only or only <= both
    # the choice depends on neither groups nor order
    assert set(held_out(replace(small, index=small.index[::-1]), 24).tolist()) == before


def test_no_size_is_lost_where_there_are_enough() -> None:
    table = table_of(48)  # 2 or 4 of each size
    left = kinds(table, select(table, Selection(num_held_out=16)).table.index)
    assert len(left) == 12
    assert len(held_out(table, 47)) == 47


def test_selections_are_made_once_and_opened_again(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "data"), 60)
    dataset = open_dataset(str(tmp_path / "data"))
    selection = Selection(num_held_out=6, frames=(1, 9), excluded=frozenset({"sample-1", "gone"}))
    expected = select(open_samples(dataset), selection)
    for _ in range(2):
        same(open_selected(dataset, (), selection, tmp_path), expected)
    same(open_selected(dataset, (), selection), expected)
    folders = [path for path in (tmp_path / FOLDER_NAME).iterdir() if path.is_dir()]
    assert len(folders) == 2
    whole = open_selected(dataset, (), Selection(), tmp_path)
    assert (len(whole.table), len(whole.held_out), whole.left_out.num_left) == (60, 0, 60)
    (chosen,) = (path for path in folders if "-" in path.name)
    (chosen / "index.npy").unlink()
    same(open_selected(dataset, (), selection, tmp_path), expected)
    with pytest.raises(DataError, match=r"data\.area"):
        open_selected(dataset, (), Selection(area=(1, 2)), tmp_path)
    assert len([path for path in (tmp_path / FOLDER_NAME).iterdir() if path.is_dir()]) == 2


def same(one: Selected, two: Selected) -> None:
    assert one.left_out == two.left_out and one.held_out.tolist() == two.held_out.tolist()
    for name in ("index", "run_begin", "run_group", "run_volume", "text", "pixels"):
        assert np.array_equal(getattr(one.table, name), getattr(two.table, name)), name
