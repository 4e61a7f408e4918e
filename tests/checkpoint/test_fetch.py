"""Checkpoints in an S3 store: copied while its server is away for a moment, read back, and named when damaged."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from megavideo.checkpoint.candidates import newest_manifest
from megavideo.checkpoint.fetch import fetch_checkpoint
from megavideo.checkpoint.manifest import DamagedError
from megavideo.checkpoint.progress import SaveProgress
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.checkpoint.store_place import StorePlace
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.data.storage.open import open_storage
from megavideo.data.storage.retry import RetryPolicy
from megavideo.errors import StoreUnreachable
from megavideo.testing.saved_run import alone
from megavideo.train.resume import newest_position
from tests.checkpoint.s3_server import RestartingServer
from tests.checkpoint.states import check, fragments, header

CONFIG = CheckpointConfig(keep_last=2)
STRAIGHT = CheckpointConfig(keep_last=2, through_folder=False)


@pytest.mark.parametrize("config", [CONFIG, STRAIGHT])
def test_copies_come_back(tmp_path: Path, s3_bucket: str, config: CheckpointConfig) -> None:
    storage = open_storage(f"{s3_bucket}/runs/small")
    with Checkpointer(config, tmp_path / "run", SaveGroup(0, 1, "one"), storage) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(header(step, progress={"at": step}), fragments(step))
        checkpointer.wait(required=True)
    assert StorePlace(storage).names() == ["step_00000002", "step_00000003"]
    assert {name.split("/")[0] for name in storage.list()} == {"step_00000002", "step_00000003"}
    told: list[str] = []
    place = fetch_checkpoint(storage, "step_00000003", tmp_path / "back", told.append)
    assert check(place) == 3
    assert place == tmp_path / "back" / "step_00000003" and len(told) == 1
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["step_00000003"]
    manifest = newest_manifest(tmp_path / "nowhere", storage)
    assert manifest is not None and manifest.progress == {"at": 3}


def test_a_store_tells_that_bytes_go_up(tmp_path: Path, s3_bucket: str) -> None:
    storage, data = open_storage(f"{s3_bucket}/runs/small"), bytes(range(256)) * (1 << 14)
    (tmp_path / "file").write_bytes(data)
    progress = SaveProgress()
    storage.write_bytes("a", data, progress.add)
    put = progress.pieces
    storage.upload(tmp_path / "file", "b", progress.add)
    assert put > 4 and progress.pieces - put > 4  # of 4 MiB
    assert storage.read_bytes("a") == storage.read_bytes("b") == data


@pytest.mark.parametrize("config", [CONFIG, STRAIGHT])
def test_a_save_tells_that_it_moves(tmp_path: Path, config: CheckpointConfig) -> None:
    """More than once a file: the big ones take long."""
    storage = open_storage(str(tmp_path / "store"))
    with Checkpointer(config, tmp_path / "run", SaveGroup(0, 1, "one"), storage) as checkpointer:
        checkpointer.save(header(1), fragments(1))
        checkpointer.wait(required=True)
        pieces = checkpointer.pieces
        assert pieces > (3 if config.through_folder else 0)
        checkpointer.wait()
        assert checkpointer.pieces == pieces


def test_a_damaged_copy_is_named(tmp_path: Path, s3_bucket: str) -> None:
    storage = open_storage(f"{s3_bucket}/runs/small")
    with Checkpointer(CONFIG, tmp_path / "run", SaveGroup(0, 1, "one"), storage) as checkpointer:
        checkpointer.save(header(1), fragments(1))
        checkpointer.wait(required=True)
    name = "step_00000001/fragments_00000.safetensors"
    data = bytearray(storage.read_bytes(name))
    data[-1] ^= 1
    storage.write_bytes(name, bytes(data))
    with pytest.raises(DamagedError, match=r"fragments_00000\.safetensors: damaged in the store or on the way"):
        fetch_checkpoint(storage, "step_00000001", tmp_path / "back", lambda name: None)


def test_a_store_that_is_away_for_a_moment_is_waited_for(tmp_path: Path, restarting_s3: RestartingServer) -> None:
    storage = open_storage(f"{restarting_s3.uri}/runs/small", RetryPolicy(30.0))
    with Checkpointer(CONFIG, tmp_path / "run", SaveGroup(0, 1, "one"), storage) as checkpointer:
        restarting_s3.stop()
        back = threading.Timer(1.5, restarting_s3.start)
        back.start()
        begin = time.monotonic()
        assert checkpointer.save(header(1), fragments(1)) < 1.0
        checkpointer.wait(required=True)
        back.join()
        (event,) = checkpointer.poll()
    assert time.monotonic() - begin > 1.5
    assert (event.failure, event.copy_failure) == (None, None)
    assert StorePlace(storage).names() == ["step_00000001"]


def test_a_store_that_stays_away_ends_nothing(tmp_path: Path, restarting_s3: RestartingServer) -> None:
    storage = open_storage(f"{restarting_s3.uri}/runs/small", RetryPolicy(0.5))
    with Checkpointer(CONFIG, tmp_path / "run", SaveGroup(0, 1, "one"), storage) as checkpointer:
        restarting_s3.stop()
        for step in (1, 2, 3):
            checkpointer.save(header(step), fragments(step))
        checkpointer.wait(required=True)
        events = checkpointer.poll()
        assert all(event.failure is None and event.copy_failure for event in events)
        restarting_s3.start()
        checkpointer.save(header(4), fragments(4))
        checkpointer.wait(required=True)
    assert [check(path) for path in sorted((tmp_path / "run").iterdir())] == [3, 4]
    # the one that is still kept here follows
    assert StorePlace(storage).names() == ["step_00000003", "step_00000004"]


def test_a_start_needs_no_store_that_is_away_where_the_folder_has_checkpoints(
    tmp_path: Path, restarting_s3: RestartingServer
) -> None:
    storage = open_storage(f"{restarting_s3.uri}/runs/small", RetryPolicy(0.5))
    with Checkpointer(CONFIG, tmp_path / "run", SaveGroup(0, 1, "one"), storage) as checkpointer:
        checkpointer.save(header(1, progress={"stage": "low"}), fragments(1))
        checkpointer.wait(required=True)
    restarting_s3.stop()
    with alone():
        step, position = newest_position(tmp_path / "run", storage)
        assert position is not None and (step, position.stage) == (1, "low")
        with pytest.raises(StoreUnreachable):
            newest_position(tmp_path / "nowhere", storage)
