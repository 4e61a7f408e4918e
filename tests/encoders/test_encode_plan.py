"""Plans of units: written once, read in part, and compared with a list of clips that has changed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from megavideo.data.dataset.dataset import DatasetInfo
from megavideo.data.ingest import open_clip_file
from megavideo.data.storage.local import LocalStorage
from megavideo.encoders.encode import plan as plan_module
from megavideo.encoders.encode import sorted_rows as sorted_rows_module
from megavideo.encoders.encode.dataset_versions import Version, clean
from megavideo.encoders.encode.plan import PageReader, Plan
from megavideo.encoders.encode.plan_work import PlannedWork, WorkOrder, plan_work
from megavideo.encoders.encode.sorted_rows import order_key, sorted_rows
from megavideo.errors import DataError
from tests.encoders.encode_cases import tree, write_list


class Watched(LocalStorage):
    """A folder that tells what is read and written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read: list[str] = []
        self.written: list[str] = []

    def read_bytes(self, name: str) -> bytes:
        self.read.append(name)
        return super().read_bytes(name)

    def write_bytes(self, name: str, data: bytes) -> None:  # type: ignore[override]
        self.written.append(name)
        super().write_bytes(name, data)


class Case:
    """A place to plan for, and lists of clips of these numbers."""

    def __init__(self, folder: Path) -> None:
        self.storage = Watched(folder / "out")
        self.folder = folder

    def plan(
        self, numbers: Iterable[int], done: int = 0, again: Iterable[int] = (), unit_clips: int = 4
    ) -> PlannedWork:
        """Plan a list; the first `done` plans are published."""
        listed = open_clip_file(write_list(self.folder / "list", self.folder / "film.mp4", numbers))
        ids = frozenset(f"clip-{number:03d}" for number in again)
        self.storage.read, self.storage.written = [], []
        return plan_work(self.storage, WorkOrder(listed, unit_clips, done, ids, self.folder))

    def clips(self, plan: Plan) -> list[int]:
        """Numbers of the clips of a plan in order."""
        reader = PageReader(self.storage)
        return [int(row.clip_id[-3:]) for unit in plan.units() for row in reader.rows(unit)]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture(params=[3, 1 << 14])
def most_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(plan_module, "_MOST_PAGES", request.param)
    return int(request.param)


def in_order(numbers: Iterable[int]) -> list[int]:
    return sorted(numbers, key=lambda number: order_key(f"clip-{number:03d}"))


def test_units_divide_the_list_in_the_order_of_a_hash(case: Case, most_pages: int) -> None:
    (plan,) = case.plan(range(30)).plans
    units = list(plan.units())
    assert (plan.num_units, [unit.num_clips for unit in units]) == (8, [4] * 7 + [2])
    assert len(plan.pages) == (3 if most_pages == 3 else 8)
    assert case.clips(plan) == in_order(range(30))
    assert len({unit.name for unit in units}) == 8
    assert [unit.name[:13] for unit in units] == [f"00000-{position:06d}-" for position in range(8)]


def test_a_process_reads_the_pages_of_its_units_and_no_other(case: Case, most_pages: int) -> None:
    case.plan(range(30))
    (plan,) = case.plan(range(30)).plans
    # A list that was planned is not compared again, and what is written is not written again.
    assert case.storage.read == ["plans/plan_00000.json"] and not case.storage.written
    case.storage.read = []
    reader = PageReader(case.storage)
    mine = [unit for unit in plan.units() if unit.page_number % 2 == 1]
    rows = [row for unit in mine for row in reader.rows(unit)]
    assert case.storage.read == [name for number, name in enumerate(plan.page_names()) if number % 2 == 1]
    assert len(rows) == sum(unit.num_clips for unit in mine) < 30


def test_what_is_new_makes_a_further_plan(case: Case, most_pages: int) -> None:
    case.plan(range(10))
    before = tree(case.storage.folder)
    work = case.plan(range(5, 25), unit_clips=3)
    assert [plan.number for plan in work.plans] == [0, 1]
    assert case.clips(work.plans[1]) == in_order(range(10, 25))
    assert {name: data for name, data in tree(case.storage.folder).items() if name in before} == before
    # Of an open plan the clips that are listed no more are told, with the units that hold them.
    lacking = {clip_id for ids in work.unlisted.values() for clip_id in ids}
    assert lacking == {f"clip-{number:03d}" for number in range(5)}
    names = {unit.name for unit in work.plans[0].units()}
    assert work.unlisted.keys() <= names
    assert case.plan(range(5, 25), done=1).unlisted == {}
    assert case.plan(range(3), done=2).plans == work.plans and not case.storage.written


def test_tasks_that_start_together_write_the_same(case: Case, tmp_path: Path, most_pages: int) -> None:
    case.plan(range(30))
    expected = tree(case.storage.folder)
    # One that was stopped before its head left pages, which are not written again; the head comes last.
    (case.storage.folder / "plans" / "plan_00000.json").unlink()
    assert case.plan(reversed(range(30))).plans[0].num_clips == 30
    assert case.storage.written == ["plans/plan_00000.json"]
    changed = {name for name, data in tree(case.storage.folder).items() if expected[name] != data}
    assert changed <= {"plans/plan_00000.json"}  # it tells of a list in another order
    other = Case(tmp_path / "other")
    other.plan(range(30))
    assert tree(other.storage.folder) == expected and other.storage.written[-1] == "plans/plan_00000.json"


def test_clips_that_failed_are_planned_again_once(case: Case) -> None:
    case.plan(range(10))
    assert len(case.plan(range(10), done=1).plans) == 1
    work = case.plan(range(10), done=1, again=[2, 7])
    assert case.clips(work.plans[1]) == in_order([2, 7])
    # A task that starts while these are under way does not plan them a second time, whatever its list.
    assert case.plan(range(10), done=1, again=[2, 7]).plans == work.plans
    more = case.plan(range(12), done=1, again=[2, 7])
    assert case.clips(more.plans[2]) == in_order([10, 11])
    # What fails once more may be tried once more.
    assert case.clips(case.plan(range(12), done=3, again=[7]).plans[3]) == [7]


def test_rows_that_changed_stay_as_they_were_planned(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    (plan,) = case.plan(range(10)).plans
    path = case.folder / "list" / "clips.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[4]["caption"] = "other words"
    path.write_text("\n".join(json.dumps(dict(reversed(row.items()))) for row in rows))  # the order is no change
    work = plan_work(case.storage, WorkOrder(open_clip_file(path.parent), 4, 0, frozenset(), case.folder))
    assert work.plans == [plan] and work.unlisted == {}
    assert "1 clips were listed otherwise" in caplog.text


def test_damage_and_older_plans_are_told(case: Case) -> None:
    (plan,) = case.plan(range(10)).plans
    page = case.storage.folder / next(plan.page_names())
    data = page.read_bytes()
    page.write_bytes(data.replace(b"64", b"65"))
    with pytest.raises(DataError, match=r"plan_00000/00000-\w+\.jsonl: damaged \(its hash.*overwrite=true"):
        PageReader(case.storage).rows(next(plan.units()))
    head = case.storage.folder / "plans" / "plan_00000.json"
    text = head.read_text()
    for broken in (text[:40], text.replace('"pages": [', '"pages": ["x", '), "[]"):
        head.write_text(broken)
        with pytest.raises(DataError, match=r"plan_00000\.json: damaged.*overwrite=true"):
            case.plan(range(10))
    head.write_text(json.dumps({"format": 1, "units": [[["clip-000", "0123456789abcdef"]]]}))
    with pytest.raises(DataError, match=r"plan_00000\.json: a plan of format 1, and.* reads 2\. Remedy: give another"):
        case.plan(range(10))


@pytest.mark.parametrize("bucket_bytes", [1, 2000, 1 << 30])
def test_a_list_of_any_length_is_sorted(case: Case, monkeypatch: pytest.MonkeyPatch, bucket_bytes: int) -> None:
    monkeypatch.setattr(sorted_rows_module, "_BUCKET_BYTES", bucket_bytes)
    folder = write_list(case.folder / "list", case.folder / "film.mp4", range(40))
    rows = list(sorted_rows(open_clip_file(folder), case.folder))
    assert [int(clip_id[-3:]) for _, clip_id, _ in rows] == in_order(range(40))
    assert sorted(line for _, _, line in rows) == sorted((folder / "clips.jsonl").read_bytes().splitlines(True))
    assert all(json.loads(line)["clip_id"] == clip_id and key == order_key(clip_id) for key, clip_id, line in rows)
    lines = (folder / "clips.jsonl").read_text()
    (folder / "clips.jsonl").write_text(lines + lines.splitlines()[7] + "\n")
    with pytest.raises(DataError, match="clip_id clip-007 stands twice"):
        list(sorted_rows(open_clip_file(folder), case.folder))
    assert not list(case.folder.glob("tmp*"))


def test_pages_of_attempts_that_were_stopped_are_removed(case: Case) -> None:
    (plan,) = case.plan(range(10)).plans
    left = case.storage.folder / plan.pages_prefix / "00000-0000000000000000.jsonl"
    left.write_text("of another list")
    case.plan(range(14))
    info = DatasetInfo(2, 10, 8, 64, (1, 2, 2), 4, 8, (), 0, {}, num_plans=1)
    clean(case.storage, Version(info, []), [plan])
    assert not left.exists() and case.clips(plan) == in_order(range(10))
