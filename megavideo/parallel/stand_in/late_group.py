"""Process groups over gloo that are worse than NCCL's: calls are done late, and out of step from rank to rank.

A call returns at once, and a thread makes it after a delay, as a stream of its own does on a GPU: until it has been
waited for, its outputs hold NaN, and its inputs must stay as they are. Code that passes on these groups owes nothing to
the luck of an early completion. What else NCCL needs of its users is checked too, and each breach is a CollectiveFault:

- the first call of a group must be made by all of its ranks, as it makes the communicator (a message between two ranks
  counts, as `batch_isend_irecv` is such a call);
- calls must be the same on all ranks, in one order;
- each work must be waited for.

Messages between two ranks pass those of other pairs, as in a batch; all else is done in the order of issue.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch.distributed as dist

from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.passing_group import Joining, PassingGroup, passing_process_group
from megavideo.parallel.stand_in.late_call import CollectiveFault, LateCall, LateWork
from megavideo.parallel.stand_in.meeting import Absent, Meeting
from megavideo.parallel.stand_in.signature import Signature, disagreement

_END_SECONDS = 5.0  # for what is still on its way when a group is destroyed


@dataclass(frozen=True)
class Lateness:
    """How late calls are made, and how long a rank waits for others: for their first call of a group, and for the call
    that it makes itself.

    Delays are half to one and a half times `delay_seconds`, drawn from the seed and the rank.
    """

    seed: int = 0
    delay_seconds: float = 0.001
    first_call_seconds: float = 15.0
    match_seconds: float = 20.0


@contextmanager
def late_process_group(lateness: Lateness | None = None) -> Iterator[Launch]:
    """A process group of late calls, with every group made from it; CPU only, always taken down at the end.

    Raises CollectiveFault at the end for what was found and for works that nobody waited for.
    """
    made: list[LateGroup] = []

    def build(joining: Joining) -> LateGroup:
        meeting = made[0].meeting if made else Meeting(joining.store)
        made.append(LateGroup(joining, meeting, lateness or Lateness()))
        return made[-1]

    with passing_process_group("late", build) as launch:
        try:
            yield launch
        except BaseException:
            for group in made:
                group.close(0.0)  # what it finds comes of what has gone wrong before
            with suppress(dist.DistError):  # the store is gone with the rank that held it
                made[0].tell_end()
            raise
        faults = [fault for group in made for fault in group.close()]
        made[0].tell_end()
        if faults:
            raise CollectiveFault("\n".join(faults))
        made[0].await_ends()


class LateGroup(PassingGroup):
    """A process group whose calls are made by threads of its own."""

    def __init__(self, joining: Joining, meeting: Meeting, lateness: Lateness) -> None:
        super().__init__(joining.gloo, joining.store, joining.ranks)
        self.meeting = meeting
        self._name = joining.name
        self._lateness = lateness
        self._me = self.ranks[self.rank()]
        self._delays = random.Random(f"{lateness.seed} {self._me} {self._name}")
        self._lock = threading.Lock()
        self._has_met = self.size() == 1
        self._lanes: dict[str, _Lane] = {}
        self._on_way: dict[str, list[LateCall]] = {}  # by lane, what a call of another lane may have to wait for
        self._unwaited: list[LateCall] = []
        self._faults: list[str] = []
        self._broken: str | None = None  # by a call that not all ranks have made, after which none can be
        self._closed = False

    def called(self, method: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> LateWork:
        """Issue a call. Raises CollectiveFault for what is already wrong with it, or with an earlier one."""
        if method == "recv_anysource":
            raise CollectiveFault(self._told("a message from any rank cannot be received: NCCL has no such call"))
        call = LateCall(method, arguments, self.rank(), self.size())
        call.name = self._told(call.name)
        with self._lock:
            if self._faults:
                raise CollectiveFault(f"{call.name} is not made, since before: {self._faults[0]}")
            self._meet(call)
            lane = _lane_name(method, arguments, self.ranks, self._me)
            before = self._before(lane)
            self._on_way.setdefault(lane, []).append(call)
            self._unwaited.append(call)
            number = self._lane(lane).next_number()
            self.meeting.tell(f"{self._name}/last/{self._me}", call.signature.text)
            delay = self._delays.uniform(0.5, 1.5) * self._lateness.delay_seconds
            self._lane(lane).put(partial(self._make, call, f"{self._name}/{lane}/{number}", options, delay, before))
        return LateWork(call, self)

    def shutdown(self) -> None:
        """Called as the group is destroyed. Raises CollectiveFault for what was found and for works not waited for."""
        faults = self.close()
        if faults:
            raise CollectiveFault("\n".join(faults))

    def close(self, seconds: float = _END_SECONDS) -> list[str]:
        """End the threads, once what is on its way is done or `seconds` are over, and tell the faults; once only."""
        if self._closed:
            return []
        self._closed = True
        end = time.monotonic() + seconds
        for call in self._unwaited:
            call.done.wait(max(0.0, end - time.monotonic()))
        for lane in self._lanes.values():
            lane.end(max(0.0, end - time.monotonic()))
        return self._faults + [f"{call.name} was never waited for" for call in self._unwaited if not call.waited]

    def tell_end(self) -> None:
        """Tell the other ranks, in the group of all, that this one needs the store no more."""
        self.meeting.tell(f"end/{self._me}", "")

    def await_ends(self) -> None:
        """On rank 0, which may hold the store, wait until no other rank needs it."""
        if self._me == 0:
            self._hear({rank: f"end/{rank}" for rank in self.ranks}, self._lateness.match_seconds, "the end")

    def waited_for(self, call: LateCall) -> None:
        """Of a call that has been waited for."""
        with self._lock:
            self._unwaited.remove(call)

    def note(self, fault: str) -> None:
        """Remember a fault for the next call and for the end."""
        self._faults.append(fault)

    def _meet(self, call: LateCall) -> None:
        """Wait at the first call until each rank has come to its own."""
        if not self._has_met:
            keys = {rank: f"{self._name}/first/{rank}" for rank in self.ranks}
            self.meeting.tell(keys[self._me], "")
            what = f"the first call of the group, which makes its communicator, as rank {self._me} did with {call.name}"
            self._hear(keys, self._lateness.first_call_seconds, what)
            self._has_met = True

    def _hear(self, keys: Mapping[int, str], seconds: float, what: str) -> Mapping[str, str]:
        """What each rank has told under its key."""
        try:
            return self.meeting.hear(list(keys.values()), seconds)
        except Absent as absent:
            missing = [rank for rank, key in keys.items() if key in absent.keys]
            last = {rank: self.meeting.told(f"{self._name}/last/{rank}") or "none" for rank in missing}
            told = ", ".join(f"rank {rank}: {text}" for rank, text in last.items())
            raise CollectiveFault(
                f"{_ranks(missing)} did not come in {seconds:g} s to {what} (last call in the group of {told})"
            ) from None

    def _lane(self, name: str) -> _Lane:
        if name not in self._lanes:
            self._lanes[name] = _Lane(f"megavideo-late-{name}")
        return self._lanes[name]

    def _before(self, lane: str) -> list[LateCall]:
        """What must be done before a call: for a message the last call of all ranks, for such a call everything."""
        for name, calls in self._on_way.items():
            self._on_way[name] = [call for call in calls if not call.done.is_set()]
        others = self._on_way if lane == _ALL else {_ALL: self._on_way.get(_ALL, [])}
        return [call for name, calls in others.items() if name != lane for call in calls]

    def _make(
        self, call: LateCall, key: str, options: Mapping[str, Any], delay: float, before: Sequence[LateCall]
    ) -> None:
        """In a thread: make the call."""
        error: BaseException | None = None
        try:
            time.sleep(delay)
            for earlier in before:
                earlier.done.wait()
            if self._broken is not None:
                raise CollectiveFault(f"{call.name} is not made, since before: {self._broken}")
            self._match(call, key)
            faults = call.touched("before it was made")
            self.pass_on(call.method, call.own_arguments(), options).wait()
            faults = faults or call.touched("before it was done")
            call.hand_over()
            if faults:
                error = CollectiveFault("; ".join(faults))
        except CollectiveFault as fault:
            error, self._broken = fault, str(fault)
        except Exception as failure:  # noqa: BLE001 - told to whoever waits
            error = CollectiveFault(f"{call.name} failed: {failure}")
            error.__cause__, self._broken = failure, str(error)
        if error is not None:
            self.note(str(error))
        call.end(error)

    def _match(self, call: LateCall, key: str) -> None:
        """Wait until all who take part have come to the same call."""
        peer = _peer(call.method, call.arguments, self.ranks)
        part = self.ranks if peer is None else tuple(sorted({self._me, peer}))
        if len(part) == 1:
            return
        keys = {rank: f"{key}/{rank}" for rank in part}
        self.meeting.tell(keys[self._me], call.signature.to_json())
        heard = self._hear(keys, self._lateness.match_seconds, call.name)
        found = disagreement({rank: Signature.read(heard[other]) for rank, other in keys.items()})
        if found is not None:
            raise CollectiveFault(f"{call.name} is not the same call on each rank: {found}")

    def _told(self, name: str) -> str:
        return f"{name} of the group of {_ranks(self.ranks)}, on rank {self._me}"


_ALL = "all"


def _peer(method: str, arguments: Sequence[Any], ranks: Sequence[int]) -> int | None:
    """The global rank at the other end of a message; None for calls of all ranks."""
    return ranks[arguments[1]] if method in ("send", "recv") else None


def _lane_name(method: str, arguments: Sequence[Any], ranks: Sequence[int], me: int) -> str:
    """What is done in order: calls of all ranks, and the messages from one rank to another."""
    peer = _peer(method, arguments, ranks)
    if peer is None:
        return _ALL
    return f"{me} to {peer}" if method == "send" else f"{peer} to {me}"


def _ranks(ranks: Any) -> str:
    numbers = list(ranks)
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


class _Lane:
    """A thread that does one thing after another."""

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._number = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def put(self, task: Any) -> None:
        self._tasks.put(task)

    def end(self, seconds: float) -> None:
        self._tasks.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # it holds tensors
