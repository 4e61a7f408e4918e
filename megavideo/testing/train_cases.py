"""Several training runs in one set of processes, forked from a server that has made the imports.

So tests pay for starting processes once, and for importing libraries hardly at all.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import multiprocessing.context
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.errors import MegavideoError
from megavideo.parallel.distributed import Launch, free_port, leave, process_group
from megavideo.train.build import Parts
from megavideo.train.run import train

# the first of them also keeps the server, and so its forks, to one thread of a CPU
_PRELOAD = ["megavideo.parity.preload", "megavideo.testing.train_cases"]
# where DeepSpeed remembers the tensor-parallel groups of the last engine that had any, and takes them for the next
_ENGINE_GROUPS = "deepspeed.utils.groups.mpu"
_BUILD = "megavideo.train.run.build_parts"
_TIMEOUT_SECONDS = 400.0  # of all cases together
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Failure:
    """A function, by its dotted place, that fails with OSError on one rank at its `call`th call (from 1)."""

    place: str
    rank: int
    call: int


@dataclass(frozen=True)
class OtherSeed:
    """A function, by its dotted place, whose last unnamed argument, a seed, is another on one rank from a call on."""

    place: str
    rank: int
    call: int


@dataclass(frozen=True)
class NanGradient:
    """On one rank alone, a parameter's gradient is not a number at its `call`th micro-batch."""

    parameter: str
    rank: int
    call: int


@dataclass(frozen=True)
class OtherWords:
    """One rank is started with more words than the others."""

    words: list[str]
    rank: int


Fault = Failure | OtherSeed | NanGradient | OtherWords


@dataclass(frozen=True)
class Case:
    """One training run: words of the command line, and what shall go wrong in it."""

    words: list[str]
    fault: Fault | None = None


@dataclass(frozen=True)
class Outcome:
    """What a rank's `train` returned (as a mapping), or the type and message of what it raised."""

    report: dict[str, Any] | None = None
    error: str | None = None
    message: str = ""


def run_cases(cases: Sequence[Case], folder: Path, *, processes: int) -> list[list[Outcome]]:
    """Run all cases in turn on so many processes; the outcomes of each case, by rank.

    Raises RuntimeError where a process fails by other than a MegavideoError, or the end does not come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    port = free_port()
    started = [  # no daemons, which could have no workers of their own
        context.Process(target=_main, args=(cases, rank, processes, port, folder)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    try:
        _wait(started, folder)
    finally:
        for process in started:
            process.kill()
            process.join()
    ranks = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(processes)]
    return [[Outcome(**outcome) for outcome in outcomes] for outcomes in zip(*ranks, strict=True)]


def _wait(processes: Sequence[multiprocessing.context.ForkServerProcess], folder: Path) -> None:
    end = time.monotonic() + _TIMEOUT_SECONDS
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > end:
            break
        time.sleep(_POLL_SECONDS)
    statuses = [process.exitcode for process in processes]
    if any(status != 0 for status in statuses):
        told = "\n".join(path.read_text() for path in sorted(folder.glob("err_*.txt")))
        raise RuntimeError(f"the cases in {folder} ended with {statuses} (None: still at work)\n{told}")


def _main(cases: Sequence[Case], rank: int, world_size: int, port: int, folder: Path) -> None:
    """A forked process: all cases under one process group."""
    errors = (folder / f"err_{rank}.txt").open("w")
    os.dup2(errors.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.WARNING)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    os.environ.update({name: str(value) for name, value in zip(names, (rank, rank, world_size, port), strict=True)})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    try:
        with process_group() as launch, patch("megavideo.train.run.process_group", lambda _: nullcontext(launch)):
            outcomes = [_outcome(case, launch) for case in cases]
        (folder / f"rank_{rank}.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    except BaseException:  # noqa: BLE001 - told to the process that started this one
        traceback.print_exc()
        leave(1)
    leave(0)


def _outcome(case: Case, launch: Launch) -> Outcome:
    with ExitStack() as stack:
        stack.enter_context(patch(_ENGINE_GROUPS, None))
        words = list(case.words)
        if case.fault is not None and case.fault.rank == launch.rank:
            if isinstance(case.fault, OtherWords):
                words += case.fault.words
            else:
                stack.enter_context(_going_wrong(case.fault))
        try:
            return Outcome(report=asdict(train(load(TrainRun, "train", words))))
        except MegavideoError as error:
            return Outcome(error=type(error).__name__, message=str(error))


def _going_wrong(fault: Failure | OtherSeed | NanGradient) -> AbstractContextManager[Any]:
    """The rank's own part of a fault, for as long as the context lasts."""
    if isinstance(fault, Failure):
        return patch(fault.place, _failing(pkgutil.resolve_name(fault.place), fault.call))
    if isinstance(fault, OtherSeed):
        return patch(fault.place, _with_other_seed(pkgutil.resolve_name(fault.place), fault.call))
    return patch(_BUILD, _with_nan_gradient(pkgutil.resolve_name(_BUILD), fault))


def _failing(original: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = 0

    def work(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError("no space left on device")
        return original(*arguments, **options)

    return work


def _with_other_seed(original: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = 0

    def work(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*arguments[:-1], arguments[-1] + (calls >= call), **options)

    return work


def _with_nan_gradient(original: Callable[..., Parts], fault: NanGradient) -> Callable[..., Parts]:
    calls = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient * math.nan if calls == fault.call else gradient

    def work(*arguments: Any) -> Parts:
        parts = original(*arguments)
        dict(parts.engine.named_parameters())[fault.parameter].register_hook(spoil)
        return parts

    return work
