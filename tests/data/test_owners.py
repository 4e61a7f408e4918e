"""Owners of an output: one plan at a time, whoever asks at once; the dead are taken over, and the living told of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megavideo.data.storage.owners import Claim, owning
from megavideo.data.storage.signs import signs_at
from megavideo.errors import FAULT_STATUS, RETRY_STATUS, DataError, OutputInUse
from megavideo.observe.owner import OWNER_FOLDER, Owner, owners_of, parse_owner, this_process
from tests.data.owner_cases import QUICK, ask_at_once, place_at

_TRAIN = Claim("train", "name= another run")
_ELSEWHERE = "another-boot pid:[1]"


def _leave_sign(folder: Path, machine: str | None = None, pid: int | None = None, held: bool = True) -> Path:
    """The sign of a process that is not this one, as it lies there."""
    own = this_process("train", "0" * 16, "0" * 16, {"SLURM_JOB_ID": "55"})
    other = replace(own, machine=own.machine if machine is None else machine, pid=pid or own.pid, held=held)
    path = folder / OWNER_FOLDER / f"00000001-{'0' * 16}-{'0' * 16}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(other.to_bytes())
    return path


def test_of_many_that_ask_at_once_one_holds_and_the_others_are_told_who(tmp_path: Path) -> None:
    outcomes = ask_at_once(str(tmp_path / "run"), [None] * 12, hold_seconds=1.0)
    refused = [outcome for outcome in outcomes if outcome != "held"]
    assert len(refused) == 11
    assert all("in use by `megavideo train`, process" in text and "Remedy: wait" in text for text in refused)
    assert not (tmp_path / "run" / OWNER_FOLDER).exists()


def test_those_of_one_plan_share_and_another_plan_is_refused(tmp_path: Path) -> None:
    outcomes = ask_at_once(str(tmp_path), ["a", "b", "a", "b", "a", "b"], hold_seconds=1.0)
    held = {plan for plan, outcome in zip("ababab", outcomes, strict=True) if outcome == "held"}
    assert len(held) == 1
    assert [outcome == "held" for outcome in outcomes] == [plan in held for plan in "ababab"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "shared", "dead"])
def test_in_fifty_rounds_never_two_plans_at_once(tmp_path: Path, kind: str) -> None:
    plans = ["a", "b", "c", "a", "b", "c"] if kind == "shared" else [None] * 6
    for number in range(50):
        folder = tmp_path / str(number)
        if kind == "dead":
            _leave_sign(folder, pid=_ended_pid())
        outcomes = ask_at_once(str(folder), plans, hold_seconds=0.6)
        held = [plan for plan, outcome in zip(plans, outcomes, strict=True) if outcome == "held"]
        assert held and (len(held) == 1 if kind != "shared" else len(set(held)) == 1 and len(held) == 2)


def test_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    sign = _leave_sign(tmp_path, pid=_ended_pid())
    begin = time.monotonic()
    with owning(tmp_path, _TRAIN):
        assert time.monotonic() - begin < 5.0
        assert not sign.exists()


def test_a_killed_task_of_the_same_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    with owning(tmp_path, replace(_TRAIN, plan="one")) as first:
        (sign,) = (tmp_path / OWNER_FOLDER).iterdir()
        owner = parse_owner(sign.read_bytes())
        assert owner is not None
        killed = sign.with_name(f"00000001-{owner.plan}-{'0' * 16}.json")
        killed.write_bytes(replace(owner, pid=_ended_pid(), token="0" * 16).to_bytes())
        with owning(tmp_path, replace(_TRAIN, plan="one")):
            assert sign.exists() and not killed.exists()
        first.check()
    assert not (tmp_path / OWNER_FOLDER).exists()


def test_a_pid_that_was_given_to_another_process_is_no_owner(tmp_path: Path) -> None:
    sign = _leave_sign(tmp_path)
    owner = parse_owner(sign.read_bytes())
    assert isinstance(owner, Owner)
    sign.write_bytes(replace(owner, started="1").to_bytes())  # this process's pid, another process
    with owning(tmp_path, _TRAIN):
        assert not sign.exists()


def test_a_silent_process_elsewhere_is_taken_over_by_one_of_many(tmp_path: Path) -> None:
    _leave_sign(tmp_path, machine=_ELSEWHERE)
    begin = time.monotonic()
    outcomes = ask_at_once(str(tmp_path), [None] * 6, hold_seconds=1.0)
    assert outcomes.count("held") == 1
    assert time.monotonic() - begin > QUICK.stale_seconds


def test_a_process_elsewhere_that_lives_is_told_of_with_its_job(tmp_path: Path) -> None:
    sign = _leave_sign(tmp_path, machine=_ELSEWHERE)
    beats = threading.Timer(0.3, os.utime, [sign])
    beats.start()
    with pytest.raises(OutputInUse, match=r"Slurm job 55, since .* end it with `scancel 55`") as refused:
        with owning(tmp_path, _TRAIN, QUICK):
            pytest.fail("two owners")
    beats.join()
    assert refused.value.exit_status == RETRY_STATUS


def test_an_owner_that_stood_still_learns_that_it_was_taken_over(tmp_path: Path) -> None:
    with owning(tmp_path, _TRAIN, QUICK) as ownership:
        ownership.check()
        for sign in (tmp_path / OWNER_FOLDER).iterdir():
            sign.unlink()  # as the one does that takes it over
        time.sleep(5 * QUICK.beat_seconds)
        with pytest.raises(OutputInUse, match="taken over by another process"):
            ownership.check()


def test_a_stopped_process_is_not_taken_over_on_its_own_machine(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        process.send_signal(signal.SIGSTOP)
        _leave_sign_of(tmp_path, process.pid)
        with pytest.raises(OutputInUse, match=f"process {process.pid} on"):
            with owning(tmp_path, _TRAIN, QUICK):
                pytest.fail("two owners")
        process.kill()
    with owning(tmp_path, _TRAIN, QUICK):
        pass


def test_a_sign_that_is_no_sign_holds_nothing_up_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / OWNER_FOLDER
    folder.mkdir()
    for name, content in (("x.json", b""), ("00000003-a.json", b'{"use": 1}'), ("9-b-c.json", b"[" * 100_000)):
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo.json")
    with owning(tmp_path, _TRAIN, QUICK):
        assert len(list(folder.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be written \(.*(Not a directory|File exists)") as error:
        with owning(tmp_path / "file", _TRAIN):
            pytest.fail("a file was owned")
    assert error.value.exit_status == FAULT_STATUS


def test_status_tells_owners(tmp_path: Path) -> None:
    with owning(tmp_path, _TRAIN):
        (owner,) = owners_of(tmp_path)
        assert (owner.use, owner.pid, owner.alive) == ("train", os.getpid(), True)
        assert owner.beat_seconds < 60
    assert owners_of(tmp_path) == []
    _leave_sign(tmp_path, pid=_ended_pid())
    assert "has ended without giving it up" in str(owners_of(tmp_path)[0])


def test_a_store_has_one_plan_at_a_time(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/data"
    outcomes = ask_at_once(uri, ["a", "b", "a", "b"], hold_seconds=2.0)
    held = {plan for plan, outcome in zip("abab", outcomes, strict=True) if outcome == "held"}
    assert len(held) == 1
    assert [outcome == "held" for outcome in outcomes] == [plan in held for plan in "abab"]
    assert signs_at(place_at(uri)).names() == []


def test_a_silent_owner_of_a_store_is_taken_over(s3_bucket: str) -> None:
    storage = place_at(f"{s3_bucket}/data")
    signs = signs_at(storage)
    other = replace(this_process("encode", "0" * 16, "0" * 16, {}), machine=_ELSEWHERE, held=True)
    signs.write(f"00000007-{other.plan}-{other.token}.json", other.to_bytes())
    with owning(storage, Claim("encode", "out= another place", "plan"), QUICK) as ownership:
        (name,) = signs.names()
        assert name.startswith("00000008-")
        time.sleep(3 * QUICK.beat_seconds)
        ownership.check()
        found = signs.read(name)
        owner = None if found is None else parse_owner(found[0])
        assert owner is not None and owner.beats > 3


def _ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _leave_sign_of(folder: Path, pid: int) -> None:
    sign = _leave_sign(folder, pid=pid)
    owner = parse_owner(sign.read_bytes())
    assert owner is not None
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    sign.write_bytes(replace(owner, started=started).to_bytes())
