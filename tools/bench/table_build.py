"""What it takes to make the table of a manifest, to open it and to plan from it: seconds, memory and bytes.

    python tools/bench/table_build.py [--json] [--samples 1000000] [--sources 1] [--folder DIR]

The manifest has rows as encode writes them, with one caption of about 80 letters. Each part runs in a process of its
own; the table is made by one process and by two, whatever the size, and the two are compared. Time of a processor is
that of all processes together. Private memory is the peak of what is no mapped file (RssAnon), less what the process
had before, and of the largest of its workers all that it has; mapped pages are the kernel's to take back.
"""

from __future__ import annotations

import argparse
import ctypes
import filecmp
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.dataset.dataset import DatasetInfo, LatentDataset, manifest_line, manifest_row
from megavideo.data.storage.local import LocalStorage
from megavideo.data.table.open import open_samples, open_selected
from megavideo.data.table.selection import Selection
from megavideo.data.table.writer import write_table
from megavideo.types import Grid, SampleInfo

_CAPTION = "a red kite flies over a beach while two children run after its shadow, slow pan left"
_POLL_SECONDS = 0.005
Sources = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One part: seconds by the clock and of processors, and peaks of private memory, its own and a worker's."""

    what: str
    seconds: float
    cpu_seconds: float
    private_mb: float
    worker_mb: float


def write_manifest(folder: Path, count: int) -> LatentDataset:
    """A dataset that has nothing but its manifest."""
    rng = np.random.default_rng(0)
    sizes = np.column_stack([rng.integers(1, 18, count), 2 * rng.integers(16, 33, (count, 2))])
    text = rng.integers(30, 301, count)
    path = folder / "manifest_v1.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, ((t, h, w), tokens) in enumerate(zip(sizes.tolist(), text.tolist(), strict=True)):
            source = f"{'films' if i % 3 else 'web'}/{i // 1000:06d}/{i % 1000:03d}.mp4"
            sample = SampleInfo(f"{i:09d}-clip", i, Grid(t, h, w), tokens, 24.0, _CAPTION, source)
            pixels = (4 * t - 3, 8 * h, 8 * w)
            file.write(manifest_line(manifest_row(sample, pixels, [(WeightedCaption(_CAPTION), tokens)])))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    info = DatasetInfo(
        format=2, num_samples=count, latent_channels=16, text_dim=64, patch=(1, 2, 2), time_ratio=4, space_ratio=8,
        dropped=(), captions_cut=0, checksums={path.name: digest},
    )  # fmt: skip
    return LatentDataset(str(folder), info, np.zeros((1, 64), np.float16), LocalStorage(folder))


def measured(what: str, work: Callable[[], object]) -> Row:
    """Do the work in a process of its own."""
    ours, theirs = multiprocessing.Pipe()

    def run() -> None:
        ctypes.CDLL(None).malloc_trim(0)  # what the one that it was forked from has freed would serve it unseen
        before, peak, worker_peak, done = private_bytes(), 0, 0, threading.Event()

        def watch() -> None:
            nonlocal peak, worker_peak
            while not done.wait(_POLL_SECONDS):
                peak = max(peak, private_bytes())
                workers = [worker.pid for worker in multiprocessing.active_children()]
                worker_peak = max([worker_peak, *map(private_bytes, workers)])

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin, cpu = time.monotonic(), sum(os.times()[:4])
        work()
        seconds, cpu = time.monotonic() - begin, sum(os.times()[:4]) - cpu
        peak = max(peak, private_bytes())
        done.set()
        watcher.join()
        theirs.send(Row(what, seconds, cpu, (peak - before) / 1e6, worker_peak / 1e6))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    theirs.close()
    row: Row = ours.recv()
    process.join()
    return row


def private_bytes(pid: int | None = None) -> int:
    """Memory of a process, or of this one, that is no mapped file; 0 where it has ended."""
    try:
        lines = Path("/proc", str(pid or "self"), "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def rows(folder: Path, count: int, sources: Sources) -> tuple[list[Row], dict[str, float]]:
    """All parts on a manifest of so many samples, and bytes per sample of the manifest, table and selection."""
    from megavideo.data.plan.packing import PackLimits  # late: workers import what this file does, and this needs torch
    from megavideo.data.plan.step_plan import PlanSettings, StepPlan

    dataset, cache = write_manifest(folder, count), folder / "cache"
    chosen = Selection(num_held_out=64, area=(1 << 17, 1 << 19), frames=(5, 33))
    settings = PlanSettings((1, 2, 2), PackLimits(75_600, 16_384, 16_384), 8, 0, weights=dict.fromkeys(sources, 1.0))

    def make(processes: int) -> Row:
        name = f"make the table, {processes} process{'es' if processes > 1 else ''}"
        return measured(
            name, lambda: write_table(dataset.manifest, sources, folder / str(processes), _nothing, processes)
        )

    found = [make(1), make(2)]
    names = [path.name for path in (folder / "1").iterdir()]
    assert filecmp.cmpfiles(folder / "1", folder / "2", names, shallow=False)[0] == names, "the two tables differ"
    found += [
        measured("make it as a run does", lambda: open_samples(dataset, sources, cache)),
        measured("open it", lambda: open_samples(dataset, sources, cache)),
        measured("plan: recipe and a step", lambda: StepPlan(open_samples(dataset, sources, cache), settings).step(9)),
        measured("select", lambda: open_selected(dataset, sources, chosen, cache)),
        measured("open what was selected", lambda: open_selected(dataset, sources, chosen, cache)),
    ]
    made = {
        f"{'selection' if '-' in path.name else 'table'}_bytes_per_sample": folder_bytes(path) / count
        for path in sorted(cache.glob("*/*"))
        if path.is_dir()
    }
    return found, {"manifest_bytes_per_sample": (folder / dataset.info.manifest_name).stat().st_size / count, **made}


def _nothing() -> None:
    pass


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--sources", type=int, default=1, choices=(0, 1))
    parser.add_argument("--folder", help="where the manifest and the tables are made")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        found, sizes = rows(Path(name), given.samples, ("films/*",) if given.sources else ())
    if given.json:
        print(json.dumps({"samples": given.samples, "rows": [asdict(row) for row in found], **sizes}))
        return
    print(f"{given.samples} samples; " + ", ".join(f"{name} {value:.1f}" for name, value in sizes.items()))
    print(f"{'':27s} seconds  of CPU  us a sample  of CPU  private MB  a worker's")
    for row in found:
        each, each_cpu = (seconds * 1e6 / given.samples for seconds in (row.seconds, row.cpu_seconds))
        times = f"{row.seconds:7.3f} {row.cpu_seconds:7.3f}  {each:11.2f} {each_cpu:7.2f}"
        print(f"{row.what:27s} {times}  {row.private_mb:10.1f}  {row.worker_mb:10.1f}")


if __name__ == "__main__":
    main()
