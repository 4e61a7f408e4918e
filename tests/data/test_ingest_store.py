"""Ingest of a bucket: the list of a folder with the same files, whatever the store does meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from megavideo.config.schema.clip_store import ClipStoreConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.config.texts import Share
from megavideo.data.clips.stored import CacheError, StoredClip, StoredClips
from megavideo.data.ingest import ingest, read_clip_list
from megavideo.data.ingest import work as work_module
from megavideo.data.ingest.listing import Listing
from megavideo.data.ingest.part import PARTS_FOLDER
from megavideo.data.ingest.report import IngestReport
from megavideo.data.ingest.share import is_in_share
from megavideo.data.storage.entry import Entry
from megavideo.data.storage.open import open_storage
from megavideo.errors import DataError, StoreUnreachable
from tests.data.clip_files import moving_square, write_clip
from tests.data.fault_proxy import FaultProxy
from tests.data.store_clips import make_clips, put, upload

CLIPS = "clips.jsonl"


@pytest.fixture(autouse=True)
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take most of the time of so few clips, and are those of a folder."""
    monkeypatch.setattr("megavideo.data.ingest.page.draw_charts", lambda charts: b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_clips(tmp_path / "clips")


@pytest.fixture
def bucket(folder: Path, s3_prefix: str) -> str:
    return upload(folder, f"{s3_prefix}/some/clips")


def run(src: str | Path, out: Path, **store: object) -> IngestRun:
    settings = {"cache": str(out.parent / "cache"), "retry_seconds": 0.5} | store
    return IngestRun(src=str(src), out=str(out), store=ClipStoreConfig(**settings))  # type: ignore[arg-type]


def copies(cfg: IngestRun) -> list[Path]:
    """What lies in the folder for copies of clips."""
    cache = Path(str(cfg.store.cache))
    return [path for path in cache.rglob("*") if path.is_file()] if cache.exists() else []


def num_parts(out: Path) -> int:
    return len(list((out / PARTS_FOLDER).rglob("*.json")))


def outcome(report: IngestReport) -> dict[str, object]:
    values = {name: value for name, value in vars(report).items() if name not in ("src", "out", "page", "dropped")}
    return values | {"dropped": [(clip.file, clip.kind) for clip in report.dropped]}


def test_a_bucket_gives_the_list_of_the_folder(
    folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through pages of two objects, and with no more than one clip on the disk."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    local = ingest(run(folder, tmp_path / "local"))
    cfg, most = run(bucket, tmp_path / "stored"), []
    examine = work_module.examine_stored

    def watched(place: StoredClips, *values: object) -> object:
        with place.fetched(str(values[0])) as copy:
            kept = [path for path in copies(cfg) if path.parent == copy.path.parent and path.name[0].isdigit()]
            most.append(sum(path.stat().st_size for path in kept))
        return examine(place, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(work_module, "examine_stored", watched)
    stored = ingest(cfg)
    assert outcome(stored) == outcome(local) and stored.num_clips == 5 and stored.inputs_dropped == 1
    assert (tmp_path / "stored" / CLIPS).read_bytes() == (tmp_path / "local" / CLIPS).read_bytes()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.suffix in (".mp4", ".png")]
    assert len(most) == 6 and max(most) <= max(sizes) < sum(sizes)
    assert not copies(cfg)
    assert json.loads((tmp_path / "stored" / "ingest.json").read_text())["root"] == bucket
    with pytest.raises(DataError, match="lie in a store"):
        read_clip_list(tmp_path / "stored").path(read_clip_list(tmp_path / "stored").rows[0])


def test_one_object(folder: Path, bucket: str, tmp_path: Path) -> None:
    report = ingest(run(f"{bucket}/deep/er/d.mp4", tmp_path / "out"))
    (row,) = read_clip_list(tmp_path / "out").rows
    assert (report.num_inputs, row.file, row.caption) == (1, "d.mp4", "two")


def test_addresses_that_lead_nowhere(s3_prefix: str, tmp_path: Path) -> None:
    for src, words in (
        ("s3://", "no bucket is named"),
        ("s3:///clips/a.mp4", "no bucket is named"),
        (f"s3://{s3_prefix.split('/')[2]}-not", "make the bucket first"),
        (f"{s3_prefix}/none/", "holds no video or image"),
        (f"{s3_prefix}/none.mp4", "holds no video or image"),
    ):
        with pytest.raises(DataError, match=words):
            ingest(run(src, tmp_path / "out"))


def test_array_tasks_and_again(folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task reads its own share alone, the last lists; a later run reads nothing but what was changed."""
    read: list[str] = []
    fetched = StoredClips.fetched

    @contextmanager
    def counted(place: StoredClips, file: str) -> Iterator[StoredClip]:
        read.append(file)
        with fetched(place, file) as copy:
            yield copy

    monkeypatch.setattr(StoredClips, "fetched", counted)
    cfg = run(bucket, tmp_path / "out")
    first = ingest(replace(cfg, shard="0/2"))
    assert 0 < first.inputs_waiting < 6 and not (tmp_path / "out" / CLIPS).exists()
    shared = len(read)
    assert ingest(replace(cfg, shard="1/2")).inputs_waiting == 0
    assert len(read) == 6 == len(set(read)) and 0 < shared < 6
    ingest(run(folder, tmp_path / "local"))
    assert (tmp_path / "out" / CLIPS).read_bytes() == (tmp_path / "local" / CLIPS).read_bytes()
    read.clear()
    write_clip(folder / "a.mp4", moving_square(9, 64, 64))
    put(bucket, "a.mp4", (folder / "a.mp4").read_bytes())
    put(bucket, "b.txt", b"other words")
    (folder / "b.txt").write_text("other words")
    ingest(cfg)
    ingest(run(folder, tmp_path / "local"))
    assert read == ["a.mp4"]
    assert (tmp_path / "out" / CLIPS).read_bytes() == (tmp_path / "local" / CLIPS).read_bytes()
    assert "other words" in (tmp_path / "out" / CLIPS).read_text()


def test_captions_of_another_task_s_share_count(folder: Path, s3_prefix: str, tmp_path: Path) -> None:
    """The first task looks for any caption; the one that lists the clips needs all of them."""
    shares = [Share(task, 2) for task in range(2)]
    names = [next(f"{n}.mp4" for n in range(99) if is_in_share(f"{n}.mp4", share)) for share in shares]
    for name in names:
        put(f"{s3_prefix}/two", name, (folder / "a.mp4").read_bytes())
    put(f"{s3_prefix}/two", names[1].replace(".mp4", ".txt"), b"the only one")
    cfg = run(f"{s3_prefix}/two", tmp_path / "out")
    assert ingest(replace(cfg, shard="0/2")).inputs_waiting == 1
    report = ingest(replace(cfg, shard="1/2"))
    assert [clip.kind for clip in report.dropped] == ["caption"]
    assert [row.caption for row in read_clip_list(tmp_path / "out").rows] == ["the only one"]


def test_what_is_changed_meanwhile(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is read the new content counts, in the same run; after it was read, the input waits for the next."""
    write_clip(tmp_path / "new.mp4", moving_square(9, 64, 64))
    examine, changes = work_module.examine_stored, {"a.mp4": "b.mp4"}  # when the first is read, the other is changed

    def meanwhile(place: StoredClips, file: str, *values: object) -> object:
        if file in changes:
            put(bucket, changes[file], (tmp_path / "new.mp4").read_bytes())
        return examine(place, file, *values)  # type: ignore[arg-type]

    def frames(out: str) -> dict[str, int]:
        return {row.file: row.frames for row in read_clip_list(tmp_path / out).rows}

    monkeypatch.setattr(work_module, "examine_stored", meanwhile)
    assert ingest(run(bucket, tmp_path / "before")).inputs_waiting == 0
    assert frames("before")["b.mp4"] == 9 and frames("before")["deep/c.mp4"] == 14
    changes = {"deep/er/d.mp4": "deep/c.mp4"}
    assert ingest(run(bucket, tmp_path / "after")).inputs_waiting == 1
    assert not (tmp_path / "after" / CLIPS).exists()
    changes = {}
    report = ingest(run(bucket, tmp_path / "after"))
    # b.mp4 and deep/c.mp4 are one clip by now
    assert frames("after")["b.mp4"] == 9 and "deep/c.mp4" not in frames("after")
    assert report.dropped_by_kind["duplicate"] == 1


def test_an_object_that_went_away_is_dropped(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examine = work_module.examine_stored

    def deleted(place: StoredClips, file: str, *values: object) -> object:
        place.storage.delete("b.mp4")
        return examine(place, file, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(work_module, "examine_stored", deleted)
    report = ingest(run(bucket, tmp_path / "out"))
    assert report.num_clips == 4 and report.num_inputs == 5


def test_hostile_names_and_large_objects_are_dropped_with_reasons(bucket: str, tmp_path: Path) -> None:
    good = ingest(run(bucket, tmp_path / "good"))
    for name in ("../out.mp4", "x/../../y.mp4", "/etc/z.mp4", "a//b.mp4", "./c.mp4"):
        put(bucket, name, b"anything")
    put(bucket, "large.mp4", bytes(200_000))
    report = ingest(run(bucket, tmp_path / "out", max_bytes=100_000))
    kinds = {clip.file: (clip.kind, clip.reason) for clip in report.dropped}
    assert [kinds[name][0] for name in ("../out.mp4", "x/../../y.mp4", "/etc/z.mp4", "a//b.mp4", "./c.mp4")] == (
        ["name"] * 5
    )
    assert kinds["large.mp4"] == ("too large", "has 200000 bytes, and at most store.max_bytes=100000 are read")
    assert "no relative name that stays inside" in kinds["../out.mp4"][1]
    assert report.num_clips == good.num_clips and report.num_inputs == good.num_inputs + 6
    assert report.inputs_kept + report.inputs_dropped == report.num_inputs
    assert (tmp_path / "out" / CLIPS).read_bytes() == (tmp_path / "good" / CLIPS).read_bytes()
    only = f"{bucket}-hostile"
    put(only, "../out.mp4", b"anything")
    with pytest.raises(DataError, match=r"holds no video or image.*stays inside"):
        ingest(run(only, tmp_path / "none"))


def test_captions_of_ones_own(bucket: str, tmp_path: Path) -> None:
    rows = [{"file": "a.mp4", "caption": "mine"}, {"file": "gone.mp4", "caption": "nobody's"}]
    own = tmp_path / "mine.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    put(bucket.rsplit("/", 1)[0], "mine.jsonl", own.read_bytes())
    for number, path in enumerate((str(own), f"{bucket.rsplit('/', 1)[0]}/mine.jsonl")):
        report = ingest(replace(run(bucket, tmp_path / f"out{number}"), captions=path))
        said = {row.file: row.caption for row in read_clip_list(tmp_path / f"out{number}").rows}
        assert said == {"a.mp4": "mine", "b.mp4": "a square of the text beside it", "deep/er/d.mp4": "two"}
        assert [note.file for note in report.caption_notes] == [f"{bucket}/gone.mp4"]
    own.write_text("{\n")
    with pytest.raises(DataError, match=r"mine\.jsonl, line 1: no row of captions: not valid JSON"):
        ingest(replace(run(bucket, tmp_path / "out"), captions=str(own)))
    put(bucket, "captions.jsonl", b"{\n")
    with pytest.raises(DataError, match=f"{bucket}/captions.jsonl, line 1: no row of captions: not valid JSON"):
        ingest(run(bucket, tmp_path / "out"))


def test_a_store_that_goes_away_ends_with_75_and_the_next_run_goes_on(
    bucket: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = FaultProxy(os.environ["S3_ENDPOINT_URL"], ".mp4")
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)

    def third_stops(path: str, count: int) -> str | None:
        return "503" if sum(proxy.gets.values()) > 2 else None

    proxy.fault = third_stops
    cfg = run(bucket, tmp_path / "out")
    with pytest.raises(StoreUnreachable) as caught:
        ingest(cfg)
    assert caught.value.exit_status == 75
    assert num_parts(tmp_path / "out") == 2 and not copies(cfg)
    proxy.gets.clear()
    # cut midway and slowed down: tried again, each until it is whole
    proxy.fault = lambda path, count: {1: "cut", 2: "503"}.get(count)
    ingest(replace(cfg, store=replace(cfg.store, retry_seconds=20.0)))
    assert len(proxy.gets) == 3 and set(proxy.gets.values()) == {3}
    ingest(run(folder, tmp_path / "local"))
    assert (tmp_path / "out" / CLIPS).read_bytes() == (tmp_path / "local" / CLIPS).read_bytes()
    proxy.stop()
    with pytest.raises(StoreUnreachable):
        ingest(cfg)


def test_a_cache_that_cannot_be_written_is_no_fault_of_a_clip(bucket: str, small_disk: Path, tmp_path: Path) -> None:
    put(bucket, "large.mp4", bytes(20_000_000))
    with pytest.raises(CacheError, match=r"No space left.*store\.cache="):
        ingest(run(bucket, tmp_path / "out", cache=str(small_disk)))
    assert not [path for path in small_disk.rglob("*") if path.suffix == ".mp4"]


@pytest.mark.slow
def test_a_killed_ingest_goes_on(bucket: str, folder: Path, tmp_path: Path) -> None:
    """SIGKILL while a clip is read: what it left is removed, and what it had read is not read again."""
    proxy = FaultProxy(os.environ["S3_ENDPOINT_URL"], ".mp4")
    proxy.fault = lambda path, count: "hang" if sum(proxy.gets.values()) > 2 else None
    cfg = run(bucket, tmp_path / "out", retry_seconds=60.0)
    words = [f"src={cfg.src}", f"out={cfg.out}", f"store.cache={cfg.store.cache}", "store.retry_seconds=60"]
    child = subprocess.Popen(
        [sys.executable, "-m", "megavideo", "ingest", *words],
        env={**os.environ, "S3_ENDPOINT_URL": proxy.url}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while sum(proxy.gets.values()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    proxy.ended.set()
    assert num_parts(tmp_path / "out") == 2 and copies(cfg)
    ingest(cfg)
    assert not copies(cfg)
    ingest(run(folder, tmp_path / "local"))
    assert (tmp_path / "out" / CLIPS).read_bytes() == (tmp_path / "local" / CLIPS).read_bytes()


@pytest.mark.slow
def test_two_tasks_at_once_with_one_cache(bucket: str, folder: Path, tmp_path: Path) -> None:
    """Each has a folder of its own in it; whichever is last lists the clips, or both."""
    cfg = run(bucket, tmp_path / "out")
    words = [f"src={cfg.src}", f"out={cfg.out}", f"store.cache={cfg.store.cache}"]
    tasks = [
        subprocess.Popen([sys.executable, "-m", "megavideo", "ingest", *words, f"shard={task}/2"]) for task in range(2)
    ]
    assert [task.wait() for task in tasks] == [0, 0]
    ingest(run(folder, tmp_path / "local"))
    assert (tmp_path / "out" / CLIPS).read_bytes() == (tmp_path / "local" / CLIPS).read_bytes()
    assert not copies(cfg)


@pytest.mark.slow
def test_workers_that_are_processes(bucket: str, folder: Path, tmp_path: Path) -> None:
    cfg = replace(run(bucket, tmp_path / "out"), workers=2)
    ingest(cfg)
    ingest(run(folder, tmp_path / "local"))
    assert (tmp_path / "out" / CLIPS).read_bytes() == (tmp_path / "local" / CLIPS).read_bytes()
    assert not copies(cfg)


@pytest.mark.parametrize("count", [2_000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_a_listing_takes_the_same_memory_for_any_number(count: int, tmp_path: Path) -> None:
    """What `pathlib` interns takes some megabytes once; the names of 300,000 would take 60."""
    first, peak = _listed(count, tmp_path)
    assert peak < 16 << 20
    assert first == "folder 00/clip-00000000.mp4"


def _listed(count: int, folder: Path) -> tuple[str, int]:
    """The first name of a listing of `count` inputs and as many captions, and its peak memory in bytes."""
    names = (f"folder {number % 97:02}/clip-{number:08}.{('mp4', 'txt')[number % 2]}" for number in range(2 * count))
    tracemalloc.start()
    listing = Listing(folder / "listing", (Entry(name, 1000, f"{name}-1") for name in names), 1 << 30)
    before = ""
    for name in listing:
        assert before < name
        before = name
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listing) == count
    assert listing.version(before) == f"{before}-1" and listing.version("other") is None
    assert listing.sidecar("folder 00/clip-00000000.mp4") is None
    first = listing[0]
    listing.close()
    return first, peak


def test_entries_of_a_store(s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names as the store has them, in pages; the version is another one with other content."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    storage = open_storage(f"{s3_prefix}/p")
    names = [*(f"{number:02}.bin" for number in range(7)), "../up", "ü.bin", "deep/"]
    for name in names:
        put(f"{s3_prefix}/p", name, name.encode())
    put(s3_prefix, "p-other/x", b"")
    found = {entry.name: entry for entry in storage.entries()}  # type: ignore[attr-defined]
    assert sorted(found) == sorted(set(names) - {"deep/"}) and found["00.bin"].num_bytes == 6
    with (tmp_path / "x").open("wb") as file:
        assert storage.fetch("00.bin", file, 6) == found["00.bin"] == storage.entry("00.bin")  # type: ignore[attr-defined]
        put(f"{s3_prefix}/p", "00.bin", b"01.bin")
        assert storage.fetch("00.bin", file, 6) != found["00.bin"]  # type: ignore[attr-defined]
        with pytest.raises(DataError, match="has 6 bytes, and at most"):
            storage.fetch("00.bin", file, 5)  # type: ignore[attr-defined]
    assert (tmp_path / "x").read_bytes() == b"01.bin" and storage.entry("none") is None  # type: ignore[attr-defined]
