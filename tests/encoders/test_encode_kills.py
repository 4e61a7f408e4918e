"""An encode that is killed at random moments and started again ends with the same bytes as one that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.open import download_all, open_storage
from megavideo.data.stream.shards import ShardReader
from megavideo.encoders.encode.run import encode
from tests.encoders.encode_cases import (
    MOST_CLIPS,
    samples_in_shards,
    settings,
    start_encode,
    tree,
    write_film,
    write_list,
)

KILLS = 10
STORE_VARIABLES = ("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of clips."""
    folder = tmp_path_factory.mktemp("clips")
    return write_list(folder / "list", write_film(folder), range(MOST_CLIPS))


@pytest.fixture(scope="module")
def undisturbed(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The dataset as it is to be, and how long it takes a process that begins at once."""
    out = tmp_path_factory.mktemp("undisturbed")
    start_encode(settings(clips, out / "first")).join()  # the server that forks has imported everything now
    begin = time.monotonic()
    process = start_encode(settings(clips, out / "latents"))
    process.join()
    assert process.exitcode == 0
    assert tree(out / "first") == tree(out / "latents")
    return out / "latents", time.monotonic() - begin


def test_ten_kills(clips: Path, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    expected, seconds = undisturbed
    seed = int(os.environ.get("MEGAVIDEO_TEST_SEED", time.time_ns() % 100_000))
    draw = random.Random(seed)
    out, kills, moments = tmp_path / "latents", 0, []
    for attempt in range(10 * KILLS):
        process = start_encode(settings(clips, out))
        # Some go beyond the end, so that the last writes are met as well; the dataset is then begun anew.
        delay = draw.uniform(0.0, seconds * (0.4 if attempt % 2 else 1.1))
        process.join(delay)
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            moments.append((round(delay, 3), len(tree(out)) if out.exists() else 0))
        if kills == KILLS:
            break
        if process.exitcode == 0:
            assert tree(out) == tree(expected), f"seed {seed}"
            shutil.rmtree(out)
    print(f"seed {seed}: killed after seconds, with files: {moments}")
    assert kills == KILLS
    report = encode(settings(clips, out))
    assert report.num_samples == MOST_CLIPS
    assert sorted(samples_in_shards(out)) == [f"clip-{number:03d}" for number in range(MOST_CLIPS)], f"seed {seed}"
    assert tree(out) == tree(expected), f"seed {seed}"
    dataset = open_dataset(str(out))
    reader = ShardReader(dataset, None)
    for sample in dataset.samples:
        assert tuple(reader.read(sample.index).latent.shape[1:]) == (sample.latent.t, sample.latent.h, sample.latent.w)


class _Deadly(LocalStorage):
    """A folder whose owner is killed before or after its n-th change."""

    def __init__(self, folder: Path, changes: int) -> None:
        super().__init__(folder)
        self.left = changes

    def write_bytes(self, name: str, data: bytes) -> None:
        self._count()
        super().write_bytes(name, data)

    def upload(self, path: Path, name: str) -> None:
        self._count()
        super().upload(path, name)

    def delete(self, name: str) -> None:
        self._count()
        super().delete(name)

    def _count(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def _deadly_encode(src: Path, out: Path, changes: int) -> None:
    from unittest import mock

    storage = _Deadly(out, changes)
    with (
        mock.patch("megavideo.encoders.encode.dataset_place.open_storage", lambda uri: storage),
        mock.patch("megavideo.encoders.encode.pool.open_storage", lambda uri: storage),
    ):
        encode(settings(src, out, unit_clips=16, shard_bytes=65536))


@pytest.mark.slow
def test_a_kill_at_every_change(clips: Path, tmp_path: Path) -> None:
    import multiprocessing

    encode(settings(clips, tmp_path / "expected", unit_clips=16, shard_bytes=65536))
    context = multiprocessing.get_context("forkserver")
    for changes in range(1000):
        out = tmp_path / str(changes)
        process = context.Process(target=_deadly_encode, args=(clips, out, changes))
        process.start()
        process.join()
        encode(settings(clips, out, unit_clips=16, shard_bytes=65536))
        assert tree(out) == tree(tmp_path / "expected"), f"killed at change {changes}"
        if process.exitcode == 0:
            assert changes >= 20
            return
    raise AssertionError("an encode of so few clips never ends")


def test_a_kill_over_a_store(clips: Path, undisturbed: tuple[Path, float], tmp_path: Path, s3_bucket: str) -> None:
    expected, _ = undisturbed
    uri = f"{s3_bucket}/killed"
    store = {name: os.environ[name] for name in STORE_VARIABLES if name in os.environ}
    storage = open_storage(uri)
    process = start_encode(settings(clips, uri), store)
    end = time.monotonic() + 60
    while len(storage.list("shards/")) < 5 and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not storage.exists("dataset.json")
    report = encode(settings(clips, uri))
    assert report.num_samples == MOST_CLIPS
    download_all(storage, "", tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(expected)


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_nothing_with_it(clips: Path, tmp_path: Path) -> None:
    encode(settings(clips, tmp_path / "expected"))
    out = tmp_path / "latents"
    process = start_encode(settings(clips, out, workers=2))
    while not (out / "units").exists() and process.exitcode is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    process.join()
    assert process.exitcode == 0
    assert tree(out) == tree(tmp_path / "expected")
