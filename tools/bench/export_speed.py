"""Export of a large checkpoint: its peak memory, and its speed beside copying what it wrote, in the same run.

    python tools/bench/export_speed.py [--json] [--parameters 2e9] [--repeats 2] [--ranks 8] [--dtype fp32]
                                       [--folder DIR]

The checkpoint holds random weights alone, in as many files as ranks. In each repeat it is exported as a transformer of
diffusers by a process of its own, and the files of an export are copied in the same folder, by the system's own copy:
first the one and then the other, and the other way around in the next repeat. Neither finds what it reads in the
system's cache, and both flush each file to disk. Checking the hashes of the checkpoint and its values counts, the start
of the process does not.

    memory    largest resident memory of an export (6 GiB or less is asked for)
    speed     seconds of copying / seconds of the export, median, smallest and largest (0.5 or more is asked for)
    cpu       seconds of CPU of copying / of the export; and of copying with a hash of what is copied / of the export
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import Header, file_digest
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.rank_part import RankPart, manifest_of
from megavideo.checkpoint.read import find_checkpoint
from megavideo.checkpoint.snapshot import Snapshot
from megavideo.config.dump import to_yaml
from megavideo.config.load import load
from megavideo.config.schema.export import ExportRun
from megavideo.config.schema.train import TrainRun
from megavideo.interop.export.run import export
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE

GIB = 1 << 30
ROOT = Path(__file__).parents[2]


def settings(parameters: float) -> TrainRun:
    """A run whose model has about so many: 16 squares of its width in each block."""
    width = 2560 if parameters >= 1e9 else 512
    layers = max(1, round(parameters / (16 * width**2)))
    words = ["run=wan_1b", "data.uri=none", f"model.width={width}", f"model.ffn={4 * width}",
             f"model.layers={layers}", f"model.heads={width // 128}"]  # fmt: skip
    return load(TrainRun, "train", words)


def make_run(folder: Path, config: TrainRun, ranks: int) -> int:
    """Write a checkpoint of random weights, a rank's share in memory at a time; the number of parameters."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in DiT(config.model, LocalLayers()).named_parameters()}
    place, save, snapshot, parts = FolderPlace(folder / "checkpoints"), SaveId(1, "bench", 0), Snapshot(), []
    place.begin(save)
    for rank in range(ranks):
        fragments = []
        for name, shape in shapes.items():
            numel = math.prod(shape)
            begin, end = numel * rank // ranks, numel * (rank + 1) // ranks
            if begin < end:
                states = {"weight": torch.randn(end - begin)}
                fragments.append(Fragment(name, shape, WHOLE, begin, states, torch.tensor(1.0)))
        state = snapshot.take(fragments)
        parts.append(RankPart(tuple(place.write(save, rank, state)), 1, state.shapes))
    place.publish(save, manifest_of(Header(1, config.layout, to_yaml(config)), parts))
    place.end(save)
    return sum(math.prod(shape) for shape in shapes.values())


@dataclass(frozen=True)
class Cost:
    """Of one export or copy."""

    seconds: float
    cpu_seconds: float
    memory_bytes: int
    size_bytes: int


def cpu_seconds() -> float:
    """Of this process, in the system too."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def export_here(words: list[str]) -> None:
    """Export in this process, and print what it cost."""
    cfg = load(ExportRun, "export", words)
    cpu = cpu_seconds()
    report = export(cfg, find_checkpoint(Path(cfg.ckpt)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(vars(Cost(report.seconds, cpu_seconds() - cpu, memory, report.size_bytes))))


def exported(run: Path, out: Path, dtype: str) -> Cost:
    """The cost of an export in a process of its own."""
    forget(run)
    words = [f"ckpt={run}", f"out={out}", "format=transformer", "weights=raw", "verify=false", f"dtype={dtype}"]
    command = [sys.executable, __file__, "--words", *words]
    return Cost(**json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def copied(folder: Path, to: Path) -> Cost:
    """The cost of copying all files of a folder."""
    forget(folder)
    begin, cpu, size = time.monotonic(), cpu_seconds(), 0
    to.mkdir()
    for path in folder.iterdir():
        shutil.copyfile(path, to / path.name)
        with (to / path.name).open("rb") as file:
            os.fsync(file.fileno())
        size += path.stat().st_size
    cost = Cost(time.monotonic() - begin, cpu_seconds() - cpu, 0, size)
    shutil.rmtree(to)
    return cost


def hashing(folder: Path) -> float:
    """Seconds of CPU of reading and hashing all files of a folder."""
    cpu = cpu_seconds()
    for path in folder.iterdir():
        file_digest(path)
    return cpu_seconds() - cpu


def forget(folder: Path) -> None:
    """Have the system drop what its cache holds of a folder's files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, parameters: float, ranks: int, repeats: int, dtype: str) -> dict[str, object]:
    """Sizes, memory and speeds."""
    run, out, copy = (folder / name for name in ("run", "out", "copy"))
    count = make_run(run, settings(parameters), ranks)
    pairs = []
    for repeat in range(repeats):
        copied_first = [copied(out, copy)] if repeat % 2 else []
        shutil.rmtree(out, ignore_errors=True)
        made = exported(run, out, dtype)
        pairs.append((made, *(copied_first or [copied(out, copy)])))
    hashed = hashing(out)
    return {
        "parameters": count,
        "size_bytes": pairs[0][0].size_bytes,
        "memory_bytes": max(made.memory_bytes for made, _ in pairs),
        "speed": spread(other.seconds / made.seconds for made, other in pairs),
        "cpu": spread(other.cpu_seconds / made.cpu_seconds for made, other in pairs),
        "cpu_of_copy_with_hash": spread((other.cpu_seconds + hashed) / made.cpu_seconds for made, other in pairs),
        "costs": [{"export": vars(made), "copy": vars(other)} for made, other in pairs],
    }


def spread(ratios: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    ratios = sorted(ratios)
    return {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--parameters", type=float, default=2e9)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--words", nargs="+", help=argparse.SUPPRESS)  # of an export to make and measure
    given = parser.parse_args()
    if given.words:
        export_here(given.words)
        return
    with tempfile.TemporaryDirectory(prefix="megavideo-export-", dir=given.folder) as folder:
        found = measure(Path(folder), given.parameters, given.ranks, given.repeats, given.dtype)
    if given.json:
        print(json.dumps(found))
        return
    print(f"{found['parameters'] / 1e9:.2f} billion parameters, {found['size_bytes'] / 1e9:.2f} GB written")
    print(f"memory  {found['memory_bytes'] / GIB:.2f} GiB")
    for name, what in (("speed", "of copying"), ("cpu", "of copying"), ("cpu_of_copy_with_hash", "with a hash")):
        ratio = found[name]
        print(f"{name.partition('_')[0]:<8}{ratio['median']:.2f} {what} ({ratio['min']:.2f} to {ratio['max']:.2f})")


if __name__ == "__main__":
    main()
