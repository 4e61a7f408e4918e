"""Export of a large checkpoint: its peak memory, and its speed beside copying what it wrote, in the same run.

    python tools/bench/export_speed.py [--json] [--parameters 2e9] [--repeats 2] [--ranks 8] [--dtype fp32]
                                       [--folder DIR]

The checkpoint holds random weights alone, in as many files as ranks. In each repeat it is exported as a transformer of
diffusers by a process of its own, and the files that came of it are copied in the same folder, by the system's own
copy; both end with a flush to disk. Checking the hashes of the checkpoint and its values counts, the start of the
process does not.

    memory    largest resident memory of an export, with what it has mapped (6 GiB or less is asked for)
    speed     seconds of copying / seconds of the export, median, smallest and largest (0.5 or more is asked for)
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
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.rank_part import RankPart, manifest_of
from megavideo.checkpoint.snapshot import Snapshot
from megavideo.config.dump import to_yaml
from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
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


def export(run: Path, out: Path, dtype: str) -> dict[str, object]:
    """The report of an export in a process of its own."""
    words = ["export", f"ckpt={run}", f"out={out}", "format=transformer", "weights=raw", "verify=false",
             f"dtype={dtype}", "--json"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "megavideo", *words]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def copy(folder: Path, to: Path) -> float:
    """Seconds of copying all files of a folder."""
    begin = time.monotonic()
    to.mkdir()
    for path in folder.iterdir():
        shutil.copyfile(path, to / path.name)
        with (to / path.name).open("rb") as file:
            os.fsync(file.fileno())
    return time.monotonic() - begin


def measure(folder: Path, parameters: float, ranks: int, repeats: int, dtype: str) -> dict[str, object]:
    """Sizes, memory and speeds."""
    count = make_run(folder / "run", settings(parameters), ranks)
    ratios, rates, size = [], [], 0
    for _ in range(repeats):
        os.sync()
        report = export(folder / "run", folder / "out", dtype)
        os.sync()
        copied = copy(folder / "out", folder / "copy")
        size = report["size_bytes"]
        ratios.append(copied / report["seconds"])
        rates.append({"export_bytes_per_second": size / report["seconds"], "copy_bytes_per_second": size / copied})
        for name in ("out", "copy"):
            shutil.rmtree(folder / name)
    return {
        "parameters": count,
        "size_bytes": size,
        "memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "speed": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "rates": rates,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--parameters", type=float, default=2e9)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="megavideo-export-", dir=given.folder) as folder:
        found = measure(Path(folder), given.parameters, given.ranks, given.repeats, given.dtype)
    if given.json:
        print(json.dumps(found))
        return
    speed = found["speed"]
    print(f"{found['parameters'] / 1e9:.2f} billion parameters, {found['size_bytes'] / 1e9:.2f} GB written")
    print(f"memory  {found['memory_bytes'] / GIB:.2f} GiB")
    print(f"speed   {speed['median']:.2f} of copying ({speed['min']:.2f} to {speed['max']:.2f})")


if __name__ == "__main__":
    main()
