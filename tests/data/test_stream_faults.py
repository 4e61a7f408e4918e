"""Faults of a store, of the disk and of workers, on two ranks with two forked workers each.

Each ends in the right data or in one clear error, in time and on every rank, and leaves nothing wrong in the cache.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import xxhash

from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.storage.locks import locked
from megavideo.data.storage.open import open_storage
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.stream.cache import FOLDER_NAME
from megavideo.data.stream.prefetch import ShardWorkers
from megavideo.data.stream.shards import ShardReader, StreamOptions
from megavideo.errors import RETRY_STATUS, StoreUnreachable
from megavideo.testing.dataset import write_dataset
from tests.data.fault_proxy import FaultProxy
from tests.data.stream_ranks import Outcome, Ranks, Reading, digest_of
from tests.s3_bucket import s3_test_bucket

NUM_SAMPLES = 40
QUICK = RetryPolicy(total_seconds=2.0, stall_seconds=1.0, first_seconds=0.05, most_seconds=0.3)
BAD = "shard.00002.mds"
SLOW = pytest.mark.slow
# words of faults that may pass by themselves: another start may find them gone
PASSING = ("given up after", "SlowDown", "bytes", "Read timeout", "bytes in")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


class Store:
    """A dataset in a bucket: its objects, and the digest of its samples."""

    def __init__(self, bucket: str, folder: Path) -> None:
        self.uri = f"{bucket}/latents"
        write_dataset(str(folder), NUM_SAMPLES, shard_bytes=4096)
        reader = ShardReader(open_dataset(str(folder)), None)
        self.right = digest_of([reader.read(i) for i in range(NUM_SAMPLES)])
        self.storage = open_storage(self.uri)
        self.objects = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        entries = [shard["raw_data"] for shard in json.loads(self.objects["index.json"])["shards"]]
        self.index = {entry["basename"]: entry for entry in entries}
        for name, data in self.objects.items():
            self.storage.write_bytes(name, data)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        with s3_test_bucket(monkeypatch) as bucket:
            yield Store(bucket, tmp_path_factory.mktemp("store"))


@pytest.fixture
def proxy(store: Store) -> Iterator[FaultProxy]:
    proxy = FaultProxy(os.environ["S3_ENDPOINT_URL"])
    yield proxy
    proxy.ended.set()
    proxy.stop()


class Scene:
    """The dataset and an empty cache."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.uri, self.right, self.index = store.uri, store.right, store.index
        self.cache = folder / "cache"

    def reading(self, proxy: FaultProxy | None = None, **settings: object) -> Reading:
        names = ("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
        environment = {name: os.environ[name] for name in names}
        if proxy is not None:
            environment["S3_ENDPOINT_URL"] = proxy.url
        environment |= settings.pop("environment", {})  # type: ignore[arg-type]
        values = {"uri": self.uri, "cache": self.cache, "retry": QUICK, "environment": environment}
        return Reading(**(values | settings))  # type: ignore[arg-type]

    def cached(self) -> list[Path]:
        """Files of the cache but its locks."""
        files = (self.cache / FOLDER_NAME).rglob("*")
        return [path for path in files if path.is_file() and ".locks" not in path.parts]

    def check_cache(self) -> None:
        """Every file has its name and its right content."""
        for path in self.cached():
            assert xxhash.xxh64(path.read_bytes()).hexdigest() == self.index[path.name]["hashes"]["xxh64"], path

    def check(self, outcomes: list[Outcome], error: str | None = None) -> None:
        """All ranks have the right data, or all the error; the cache holds nothing wrong."""
        self.check_cache()
        for outcome in outcomes:
            if error is None:
                assert (outcome.digest, outcome.error) == (self.right, "")
            else:
                kind = "StoreUnreachable: " if error in PASSING else "DataError: "
                assert error in outcome.error and outcome.error.startswith(kind) and "Remedy: " in outcome.error


@pytest.fixture
def scene(store: Store, tmp_path: Path) -> Scene:
    return Scene(store, tmp_path)


def test_a_shard_is_fetched_once_for_all_ranks_and_workers(scene: Scene, proxy: FaultProxy, ranks: Ranks) -> None:
    proxy.fault = lambda name, count: "slow"
    outcomes = ranks.read(scene.reading(proxy))
    scene.check(outcomes)
    assert proxy.gets == dict.fromkeys(scene.index, 1)
    counts = [outcome.counts for outcome in outcomes if outcome.counts]
    assert sum(c.downloads for c in counts) == len(scene.index)
    assert sum(c.fetched_bytes for c in counts) == sum(entry["bytes"] for entry in scene.index.values())
    assert all(c.samples == NUM_SAMPLES and c.downloads + c.hits == len(scene.index) for c in counts)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_keeps_its_bound(scene: Scene, ranks: Ranks, workers: int) -> None:
    limit = 5 * max(entry["bytes"] for entry in scene.index.values())
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.002):
            with locked(scene.cache / FOLDER_NAME / ".locks" / "room.lock", 10.0):
                most = max(most, sum(path.stat().st_size for path in scene.cached() if path.exists()))

    watcher = threading.Thread(target=watch)
    (scene.cache / FOLDER_NAME).mkdir(parents=True)
    watcher.start()
    outcomes = ranks.read(scene.reading(workers=workers, cache_bytes=limit))
    ended.set()
    watcher.join()
    scene.check(outcomes)
    assert limit / 2 < most <= limit < sum(entry["bytes"] for entry in scene.index.values())
    assert all(outcome.counts and outcome.counts.evictions for outcome in outcomes)


def at_first(fault: str, times: int = 1) -> Callable[[str, int], str | None]:
    return lambda name, count: fault if count <= times and name == BAD else None


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ("503", 3),
        ("flip", 1),
        ("404", 1),
        *(pytest.param(fault, 1, marks=SLOW) for fault in ("cut", "hang", "trickle")),
    ],
)
def test_what_passes_is_survived(scene: Scene, proxy: FaultProxy, ranks: Ranks, fault: str, times: int) -> None:
    proxy.fault = at_first(fault, times)
    outcomes = ranks.read(scene.reading(proxy))
    scene.check(outcomes)
    assert proxy.gets[BAD] == times + 1
    if fault != "flip":
        assert sum(outcome.counts.retries for outcome in outcomes if outcome.counts) >= times


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("503", "SlowDown", marks=SLOW),
        pytest.param("cut", "bytes", marks=SLOW),
        ("flip", "shard is damaged: its xxh64 is"),
        pytest.param("hang", "Read timeout", marks=SLOW),
        pytest.param("trickle", "bytes in", marks=SLOW),
        pytest.param("404", "restore the object", marks=SLOW),
        ("403", "check AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_stays_ends_every_rank(scene: Scene, proxy: FaultProxy, ranks: Ranks, fault: str, words: str) -> None:
    proxy.fault = at_first(fault, 10**6)
    outcomes = ranks.read(scene.reading(proxy), 15.0)
    scene.check(outcomes, words)
    assert all(BAD in outcome.error for outcome in outcomes)
    proxy.fault = lambda name, count: None  # the store is mended, and the same cache serves
    scene.check(ranks.read(scene.reading(proxy)))


def test_a_small_file_that_trickles_is_asked_for_again(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)
    proxy.fault = at_first("trickle")
    storage, begin = open_storage(store.uri, QUICK), time.monotonic()
    assert storage.read_bytes(BAD) == store.objects[BAD]
    assert storage.retries == 1 and time.monotonic() - begin < 10


@pytest.mark.parametrize("seconds", [1.0, None])
def test_a_server_that_dies(scene: Scene, proxy: FaultProxy, ranks: Ranks, seconds: float | None) -> None:
    policy = RetryPolicy(total_seconds=4.0, stall_seconds=0.8, first_seconds=0.05, most_seconds=0.5)
    ranks.begin(scene.reading(proxy, pause=0.03, retry=policy if seconds else QUICK))
    while sum(proxy.gets.values()) < 3:
        time.sleep(0.01)
    proxy.stop()
    if seconds is not None:
        time.sleep(seconds)
        proxy.start()
        scene.check(ranks.outcomes(20.0))
    else:
        scene.check(ranks.outcomes(20.0), "given up after")
        proxy.start()


@pytest.mark.parametrize(("how", "words"), [("missing", BAD), ("truncated", "bytes, the index"), ("flipped", "xxh64")])
def test_a_bad_object(store: Store, scene: Scene, ranks: Ranks, how: str, words: str) -> None:
    data = store.objects[BAD]
    try:
        if how == "missing":
            store.storage.delete(BAD)
        else:
            store.storage.write_bytes(BAD, data[:-100] if how == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
        scene.check(ranks.read(scene.reading(), 15.0), words)
        assert BAD not in {path.name for path in scene.cached()}
    finally:
        store.storage.write_bytes(BAD, data)


def test_a_wrong_secret_is_told_and_not_shown(scene: Scene, proxy: FaultProxy, ranks: Ranks) -> None:
    if not os.environ.get("MEGAVIDEO_TEST_S3"):  # moto checks no signatures
        proxy.fault = lambda name, count: "403"
    outcomes = ranks.read(scene.reading(proxy, environment={"AWS_SECRET_ACCESS_KEY": "not-the-secret"}), 15.0)
    scene.check(outcomes, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    assert not any("not-the-secret" in outcome.error for outcome in outcomes)


@pytest.mark.parametrize("how", ["disk", "limit"])
def test_a_full_disk(scene: Scene, ranks: Ranks, tmp_path: Path, how: str) -> None:
    scene.cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(scene.cache)]
    if how == "limit":
        scene.check(ranks.read(scene.reading(file_bytes=2000)), "File too large")
        assert scene.cached() == []
        return
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        (scene.cache / "of-others").write_bytes(bytes(60_000))
        scene.check(ranks.read(scene.reading()), "the disk is full")
        assert scene.cached() == []
        (scene.cache / "of-others").write_bytes(bytes(30_000))
        scene.check(ranks.read(scene.reading()))  # room for some shards is enough
    finally:
        subprocess.run(["umount", str(scene.cache)], check=True)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "ended by SIGKILL"), pytest.param(signal.SIGSTOP, "has not moved", marks=SLOW)],
)
def test_a_worker_that_dies_or_hangs(
    scene: Scene, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, words: str
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)
    proxy.fault = lambda name, count: "slow"
    reader = ShardReader(open_dataset(scene.uri, QUICK), scene.cache, StreamOptions(workers=1))
    with reader.working():
        reader.expect(range(NUM_SAMPLES))
        while not proxy.gets:
            time.sleep(0.01)
        (worker,) = (child for child in multiprocessing.active_children() if child.name == "megavideo-data")
        os.kill(worker.pid or 0, number)
        begin = time.monotonic()
        with pytest.raises(
            StoreUnreachable, match=words
        ) as fault:  # as a rank that is killed, it asks for another start
            for index in range(NUM_SAMPLES):
                reader.read(index)
        assert time.monotonic() - begin < 10 and fault.value.exit_status == RETRY_STATUS
    assert not worker.is_alive()
    proxy.fault = lambda name, count: None
    again = ShardReader(open_dataset(scene.uri), scene.cache)
    assert digest_of([again.read(i) for i in range(NUM_SAMPLES)]) == scene.right
    scene.check_cache()


def test_workers_go_on_when_slurm_signals_every_process_of_a_task(
    scene: Scene, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)
    reader = ShardReader(open_dataset(scene.uri, QUICK), scene.cache, StreamOptions(workers=1))
    with reader.working():
        reader.expect(range(NUM_SAMPLES))
        (worker,) = (child for child in multiprocessing.active_children() if child.name == "megavideo-data")
        reader.read(0)  # the worker is at work, and no longer what was forked
        for name in ("USR1", "TERM"):  # by another process than the rank, as Slurm's daemon does
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        assert digest_of([reader.read(i) for i in range(NUM_SAMPLES)]) == scene.right
        begin = time.monotonic()
    assert not worker.is_alive() and worker.exitcode == 0 and time.monotonic() - begin < 2


def test_a_rank_that_is_killed_takes_its_workers_along_and_leaves_no_lock(scene: Scene, proxy: FaultProxy) -> None:
    alone = Ranks(1)
    (process,) = alone.processes
    proxy.fault = lambda name, count: "hang" if count == 1 else None
    alone.begin(scene.reading(proxy, retry=RetryPolicy(60, 60)))
    while len(proxy.gets) < 2:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.kill()
    reader = ShardReader(open_dataset(scene.uri), scene.cache)
    _, alive = psutil.wait_procs(workers, timeout=5)
    for worker in alive:
        worker.kill()
    assert not alive
    assert digest_of([reader.read(i) for i in range(NUM_SAMPLES)]) == scene.right
    scene.check_cache()


def test_a_defect_in_a_worker_is_raised_with_its_traceback(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ShardReader(open_dataset(scene.uri), scene.cache, StreamOptions(workers=1))
    monkeypatch.setattr("megavideo.data.stream.shard_files.ShardFiles.check", lambda self, number, moving: 1 / 0)
    with reader.working(), pytest.raises(RuntimeError, match="ZeroDivisionError"):
        reader.read(0)


def test_workers_hold_no_socket_of_the_rank(scene: Scene) -> None:
    import socket

    ours, theirs = socket.socketpair()
    workers = ShardWorkers(ShardReader(open_dataset(scene.uri), scene.cache)._files, 2, 5.0)
    theirs.close()
    ours.settimeout(5)
    workers.ensure(0)
    assert ours.recv(1) == b""  # its other end is gone: nobody keeps it open
    workers.close()


@pytest.fixture
def server() -> Iterator[Callable[[str], None]]:
    """Stops and starts the real server by the command in MEGAVIDEO_TEST_S3_SERVER."""
    command = os.environ.get("MEGAVIDEO_TEST_S3_SERVER")
    if not command:
        pytest.skip("MEGAVIDEO_TEST_S3_SERVER names no command with stop and start for the server")
    yield lambda verb: subprocess.run([command, verb], check=True, capture_output=True) and None
    subprocess.run([command, "start"], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5.0, None])
def test_the_real_server_is_killed(
    scene: Scene, ranks: Ranks, server: Callable[[str], None], seconds: float | None
) -> None:
    ranks.begin(scene.reading(pause=0.1, retry=RetryPolicy()))
    time.sleep(0.5)
    server("stop")
    if seconds is not None:
        time.sleep(seconds)
        server("start")
        scene.check(ranks.outcomes(60.0))
    else:
        begin = time.monotonic()
        outcomes = ranks.outcomes(40.0)
        assert time.monotonic() - begin < 30
        server("start")
        scene.check(outcomes, "given up after")
