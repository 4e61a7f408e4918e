"""Several training runs in one set of processes, forked from a server that has made the imports.

So tests pay for starting processes once, and for importing libraries hardly at all.
"""

from __future__ import annotations

import math
import pkgutil
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
from megavideo.parallel.processes.distributed import Launch
from megavideo.testing.ranks import run_ranks
from megavideo.train.build import Parts
from megavideo.train.run import train

# where DeepSpeed remembers the tensor-parallel groups of the last engine that had any, and takes them for the next
_ENGINE_GROUPS = "deepspeed.utils.groups.mpu"
_BUILD = "megavideo.train.run.build_parts"


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
    ranks = run_ranks(_outcomes, (cases,), folder, processes=processes)
    return [[Outcome(**outcome) for outcome in outcomes] for outcomes in zip(*ranks, strict=True)]


def _outcomes(launch: Launch, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Those of one rank: all cases under its one process group."""
    with patch("megavideo.train.run.process_group", lambda *_: nullcontext(launch)):
        return [asdict(_outcome(case, launch)) for case in cases]


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
