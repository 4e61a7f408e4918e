"""Who is slow. Ranks that train together take the same time for a step, since all wait for the slowest of them.

So what is compared is the time in which a rank worked: `data`, while it waited for its own input; `compute`, while its
thread ran or wanted to, which in a collective of gloo it does not; and `probe`, a matrix product of fixed size that is
timed now and then. On a GPU the host cannot tell work from waiting inside a stream, so there the probe stands for the
device and `compute` is not compared.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median_low
from typing import TypeVar

import torch
import torch.distributed as dist

from megavideo.config.schema.guard import GuardConfig
from megavideo.parallel.machine.matmul_probe import MatmulProbe
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.thread_time import worked_seconds

PHASES = ("data", "compute", "probe")
# of a step's time, that a rank must lose in a phase before it matters; the probe stands for more than its own time
_LEAST_SHARE = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class Straggler:
    """A rank that is slow in a phase: its seconds a step, or for one probe, and the median of its like."""

    rank: int
    host: str
    phase: str
    seconds: float
    median_seconds: float


class Stragglers:
    """Compares the ranks of a run every `guard.straggler_every` steps.

    `alike` are the ranks that have as much to compute as each other, as those of one pipeline stage; None: all.
    """

    def __init__(self, guard: GuardConfig, launch: Launch, alike: Sequence[Sequence[int]] | None = None) -> None:
        self._guard = guard
        self._launch = launch
        self._alike = alike or (range(launch.world_size),)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps = 0
        self._begin = time.perf_counter()
        self._probe: MatmulProbe | None = None
        self._hosts: list[str] = []

    @contextmanager
    def working(self, phase: str) -> Iterator[None]:
        """Count the block to a phase: its time for `data`; for `compute` that of this thread, without its waiting."""
        clock = time.perf_counter if phase == "data" else worked_seconds
        begin = clock()
        yield
        self._seconds[phase] += clock() - begin

    def reading(self, inputs: Iterator[T]) -> Iterator[T]:
        """The inputs; the time until each comes counts as `data`."""
        while True:
            with self.working("data"):
                given = next(inputs, None)
            if given is None:
                return
            yield given

    def step(self) -> list[Straggler]:
        """End a step. Every `straggler_every`th is a collective of all ranks, and gives all the same list."""
        self._steps += 1
        if self._launch.world_size == 1 or self._steps < self._guard.straggler_every:
            return []
        table = self._gathered()
        found = stragglers(table, self._step_seconds(), self._guard.straggler_factor, self._alike)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps, self._begin = 0, time.perf_counter()
        return [Straggler(rank, self._hosts[rank], phase, mine, middle) for rank, phase, mine, middle in found]

    def _step_seconds(self) -> float:
        """The longest of all ranks, so that they judge alike; their clocks differ by next to nothing."""
        longest = torch.tensor((time.perf_counter() - self._begin) / self._steps, device=self._launch.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        return float(longest)

    def _gathered(self) -> list[dict[str, float]]:
        """Seconds a step of each phase, of each rank."""
        world_size, device = self._launch.world_size, self._launch.device
        if not self._hosts:
            self._hosts = [""] * world_size
            dist.all_gather_object(self._hosts, socket.gethostname())
        self._probe = self._probe or MatmulProbe(device)
        mine = {phase: seconds / self._steps for phase, seconds in self._seconds.items()}
        mine["probe"] = self._probe.seconds()
        if device.type == "cuda":
            mine["compute"] = 0.0
        row = torch.tensor([mine[phase] for phase in PHASES], dtype=torch.float64, device=device)
        table = torch.empty(world_size * len(PHASES), dtype=torch.float64, device=device)
        dist.all_gather_into_tensor(table, row)
        return [dict(zip(PHASES, values, strict=True)) for values in table.view(world_size, -1).tolist()]


def stragglers(
    table: Sequence[dict[str, float]], step_seconds: float, factor: float, alike: Sequence[Sequence[int]]
) -> list[tuple[int, str, float, float]]:
    """(rank, phase, seconds, median) of those above `factor` times the median, from the seconds of each rank's phases.

    `compute` is compared among those alike, and what a phase loses must matter beside the step.
    """
    found: list[tuple[int, str, float, float]] = []
    for phase in PHASES:
        for ranks in alike if phase == "compute" else (range(len(table)),):
            middle = median_low([table[rank][phase] for rank in ranks])
            least = 0.0 if phase == "probe" else _LEAST_SHARE * step_seconds
            for rank in ranks:
                seconds = table[rank][phase]
                if seconds > factor * middle and seconds - middle > least:
                    found.append((rank, phase, seconds, middle))
    return sorted(found)
