"""Saves of a training state: seconds that training is blocked, and bandwidth beside torch.save, in the same run.

    python tools/bench/checkpoint_speed.py [--json] [--repeats 5] [--gb 1.0] [--step 1.0] [--folder DIR]

The state is as an engine's: weight, two moments and average of many parameters, float32, in host memory. In each
repeat, in an order that changes, it is saved by an asynchronous save, by a synchronous one, and by torch.save of the
same tensors into one file of the same folder, once as it is and once followed by fsync, which every save of ours does.
Between an asynchronous save and the update that would change the states, a forward and backward pass is computed as
matrix products that take about `--step` seconds; what the update then still waits for counts as blocked. By how much
the products are slowed, because copying and writing take cores and memory from them, is told beside it. The first
repeat of each is not counted, nor is the removal of files. Ratios are medians over repeats, with the smallest
and the largest:

    blocked    seconds for which an asynchronous save blocks / seconds of a synchronous one (0.1 or less is asked for)
    bandwidth  seconds of torch.save / seconds of a synchronous save (0.5 or more is asked for)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.read import CheckpointReader
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE

STATES = ("weight", "exp_avg", "exp_avg_sq", "ema")
PARAMETERS = 100

Seconds = dict[str, float]


def made_state(size_bytes: float) -> list[Fragment]:
    """Fragments of so many bytes together."""
    numel = int(size_bytes / len(STATES) / PARAMETERS / 4)
    steps = torch.tensor(7.0)
    return [
        Fragment(f"p{i}", (numel,), WHOLE, 0, {state: torch.randn(numel) for state in STATES}, steps)
        for i in range(PARAMETERS)
    ]


def by_torch(state: list[Fragment], folder: Path, flush: bool) -> Seconds:
    """torch.save of all tensors in one file."""
    tensors = {f"{state_}/{fragment.name}": values for fragment in state for state_, values in fragment.states.items()}
    path = folder / "torch.pt"
    path.unlink(missing_ok=True)
    begin = time.monotonic()
    with path.open("wb") as file:
        torch.save(tensors, file)
        if flush:
            os.fsync(file.fileno())
    seconds = time.monotonic() - begin
    path.unlink()
    return {"seconds": seconds}


class Passes:
    """Forward and backward passes that take about so many seconds on one thread, as in training on a busy host."""

    def __init__(self, seconds: float) -> None:
        self._matrix = torch.randn(1024, 1024)
        self._count = 1
        self._count = max(1, round(seconds / self.run()))

    def run(self) -> float:
        """Compute; the seconds that it took."""
        begin = time.monotonic()
        for _ in range(self._count):
            torch.mm(self._matrix, self._matrix)
        return time.monotonic() - begin


def by_ours(state: list[Fragment], checkpointer: Checkpointer, step: int) -> Seconds:
    """A save, waited for, and how long it took in all."""
    checkpointer.save(Header(step, "zero1", ""), state)
    checkpointer.wait(required=True)
    (event,) = checkpointer.poll()
    return {"seconds": event.seconds}


def beside_passes(state: list[Fragment], checkpointer: Checkpointer, step: int, passes: Passes) -> Seconds:
    """A save beside training: what it blocked, and by how much it slowed the passes, which ran alone just before."""
    alone = passes.run()
    checkpointer.save(Header(step, "zero1", ""), state, overlap=True)
    beside = passes.run()
    blocked = checkpointer.settle()
    checkpointer.wait(required=True)
    (event,) = checkpointer.poll()
    return {"seconds": event.seconds, "blocked": blocked, "slowed": max(0.0, beside - alone)}


def measure(folder: Path, size_bytes: float, repeats: int, passes: Passes) -> dict[str, list[Seconds]]:
    """Figures of each way of saving, by repeat."""
    state = made_state(size_bytes)
    settings = {"asynchronous": True, "synchronous": False}
    savers = {
        name: Checkpointer(CheckpointConfig(asynchronous=value, keep_last=1), folder / name, SaveGroup(0, 1, name))
        for name, value in settings.items()
    }
    for saver in savers.values():
        saver.reserve(state)
    ways: dict[str, Callable[[int], Seconds]] = {
        "asynchronous": lambda step: beside_passes(state, savers["asynchronous"], step, passes),
        "synchronous": lambda step: by_ours(state, savers["synchronous"], step),
        "torch": lambda step: by_torch(state, folder, flush=False),
        "torch_flushed": lambda step: by_torch(state, folder, flush=True),
    }
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name in random.Random(repeat).sample(sorted(ways), len(ways)):
            os.sync()  # what another way has left to write is not this one's
            seconds = ways[name](repeat + 1)
            if repeat:
                found[name].append(seconds)
            for checkpoint in folder.glob(f"{name}/step_*"):
                CheckpointReader(checkpoint).verify()
                shutil.rmtree(checkpoint)
    for saver in savers.values():
        saver.close()
    return found


def ratio(upper: list[float], lower: list[float]) -> dict[str, float]:
    """Median, smallest and largest of the quotients by repeat."""
    quotients = [a / b for a, b in zip(upper, lower, strict=True)]
    return {"median": statistics.median(quotients), "min": min(quotients), "max": max(quotients)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--step", type=float, default=1.0, help="seconds of a forward and backward pass")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-speed-", dir=given.folder))
    try:
        found = measure(folder, given.gb * 1e9, given.repeats, Passes(given.step))
    finally:
        shutil.rmtree(folder)
    seconds = {name: [row["seconds"] for row in rows] for name, rows in found.items()}
    blocked = [row["blocked"] for row in found["asynchronous"]]
    slowed = [row["blocked"] + row["slowed"] for row in found["asynchronous"]]
    report = {
        "gb": given.gb,
        "repeats": given.repeats,
        "blocked_ratio": ratio(blocked, seconds["synchronous"]),
        "blocked_and_slowed_ratio": ratio(slowed, seconds["synchronous"]),
        "bandwidth_ratio": ratio(seconds["torch"], seconds["synchronous"]),
        "bandwidth_ratio_flushed": ratio(seconds["torch_flushed"], seconds["synchronous"]),
        "median_seconds": {**{name: statistics.median(row) for name, row in seconds.items()},
                           "blocked": statistics.median(blocked)},
    }  # fmt: skip
    if given.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        print(f"{name:<24} " + "  ".join(f"{key} {number:.3g}".strip() for key, number in rows))


if __name__ == "__main__":
    main()
