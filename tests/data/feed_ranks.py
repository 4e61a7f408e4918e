"""Data-parallel ranks as processes, each with the feed of a training run and the workers that it forks."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.plan.step_plan import WHOLE_RUN, StagePlace
from megavideo.data.stream.shards import ShardReader, StreamOptions
from megavideo.diffusion.objective import build_objective
from megavideo.parallel.processes.forked import end_with_parent
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.packs.feed import Feed

_SECONDS = 300.0
Visits = Counter[tuple[str, int]]


@dataclass(frozen=True)
class Start:
    """One start of a run: `dp` ranks with `workers` each train steps [begin, end) of a run of `steps`.

    `environment` is what ranks need of this process's, which the server that they are forked from may not have.
    """

    config: TrainRun
    cache: Path | None
    dp: int
    workers: int
    begin: int
    end: int
    steps: int
    environment: dict[str, str] = field(default_factory=dict)


def delivered(start: Start) -> dict[int, Visits]:
    """How often each (sample id, visit) was in the packs of the ranks together, by step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megavideo.train.packs.feed"])
    ranks = []
    for rank in range(start.dp):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(start, rank, theirs))  # no daemon, which could fork no workers
        process.start()
        theirs.close()
        ranks.append((process, ours))
    seen: dict[int, Visits] = {step: Counter() for step in range(start.begin, start.end)}
    try:
        for process, ours in ranks:
            assert wait([ours], _SECONDS), f"{process.name} hangs"
            for step, visits in ours.recv().items():
                seen[step].update(visits)
            process.join(_SECONDS)
            assert process.exitcode == 0
    finally:
        for process, _ in ranks:
            process.kill()
    return seen


def make_feed(start: Start, rank: int, place: StagePlace = WHOLE_RUN) -> Feed:
    """The feed of a rank, on a data set that it opens itself."""
    dataset = open_dataset(start.config.data.uri)
    reader = ShardReader(dataset, start.cache, StreamOptions(start.workers))
    mesh = ProcessMesh(rank=rank, tp=1, ulysses=1, ring=1, dp=start.dp, pp=1)
    return Feed(start.config, dataset, reader, build_objective(start.config.diffusion), mesh, place)


def _run(start: Start, rank: int, connection: Connection) -> None:
    end_with_parent()
    os.environ.update(start.environment)
    inputs = make_feed(start, rank).steps(start.begin, start.steps, depth=2)
    seen: dict[int, Visits] = {}
    for _ in range(start.begin, start.end):
        given = next(inputs)
        packs = [batch.pack for batch in given.batches]
        names = ((name, visit) for pack in packs for name, visit in zip(pack.sample_ids, pack.visits, strict=True))
        seen[given.step] = Counter(each for each in names if each[0])
    inputs.close()  # with steps and shards made ahead, as when a run is stopped
    connection.send(seen)
