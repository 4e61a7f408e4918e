"""Several training runs in one set of processes, so that tests pay for their start once.

`python -m megavideo.testing.train_cases CASES RESULTS`, alone or under torchrun: CASES is the JSON of a list of
`Case`s; each rank writes the list of its outcomes to `RESULTS/rank_R.json`.
"""

from __future__ import annotations

import json
import logging
import pkgutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.errors import MegavideoError
from megavideo.parallel.deepspeed import load_deepspeed
from megavideo.parallel.distributed import leave, process_group
from megavideo.testing.launch import run
from megavideo.train.run import train

_MODULE = "megavideo.testing.train_cases"
# where DeepSpeed remembers the tensor-parallel groups of the last engine that had any, and takes them for the next
_ENGINE_GROUPS = "deepspeed.utils.groups.mpu"


@dataclass(frozen=True)
class Failure:
    """A function, by its dotted place, that fails with OSError on one rank at its `call`th call (from 1)."""

    place: str
    rank: int
    call: int


@dataclass(frozen=True)
class Case:
    """One training run: words of the command line, and what shall fail in it."""

    words: list[str]
    failure: Failure | None = None


@dataclass(frozen=True)
class Outcome:
    """What a rank's `train` returned (as a mapping), or the type and message of what it raised."""

    report: dict[str, Any] | None = None
    error: str | None = None
    message: str = ""


def run_cases(cases: Sequence[Case], folder: Path, *, processes: int) -> list[list[Outcome]]:
    """Start the program; the outcomes of each case, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    finished = run(_MODULE, [str(folder / "cases.json"), str(folder)], folder, processes=processes)
    if finished.status != 0:
        raise RuntimeError(f"the cases in {folder} ended with {finished.status}\n{finished.err}")
    ranks = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(processes)]
    return [[Outcome(**outcome) for outcome in outcomes] for outcomes in zip(*ranks, strict=True)]


def main(cases_file: Path, results: Path) -> None:
    """Run all cases under one process group."""
    logging.basicConfig(level=logging.WARNING)
    cases = [
        Case(row["words"], Failure(**row["failure"]) if row["failure"] else None)
        for row in json.loads(cases_file.read_text())
    ]
    with process_group() as launch, patch("megavideo.train.run.process_group", lambda: nullcontext(launch)):
        outcomes = [_outcome(case, launch.rank) for case in cases]
    (results / f"rank_{launch.rank}.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes]))


def _outcome(case: Case, rank: int) -> Outcome:
    load_deepspeed()
    with ExitStack() as stack:
        stack.enter_context(patch(_ENGINE_GROUPS, None))
        failure = case.failure
        if failure is not None and failure.rank == rank:
            original = pkgutil.resolve_name(failure.place)
            stack.enter_context(patch(failure.place, _failing(original, failure.call)))
        try:
            return Outcome(report=asdict(train(load(TrainRun, "train", case.words))))
        except MegavideoError as error:
            return Outcome(error=type(error).__name__, message=str(error))


def _failing(original: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = 0

    def work(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError("no space left on device")
        return original(*arguments, **options)

    return work


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave(0)
