"""Runs all parts of the bench in order within its time. Started by tools/bench/gpu.sh, whose header says how.

Rows are written as they come, so that a run that is cut off still tells what it found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[3]))

from page import make_page
from parts import Part, run_part
from rows import Results
from session import Session
from shapes import real_sizes, rehearsal_sizes
from timing import clock_of

PARTS = (
    Part("facts", "The machine", 1, "facts"),
    Part("ceilings", "Ceilings of products and copies", 3, "ceilings"),
    Part("attention", "Attention kernels", 9, "packed_attention"),
    Part("model", "Training steps", 18, "training_steps"),
    Part("diffusers", "Beside diffusers", 12, "beside_diffusers"),
    Part("predicted", "Measured beside predicted", 1, "predicted"),
    Part("launches", "Kernels launched and host reads", 3, "launches"),
)


def main() -> int:
    """Run the parts; 0 where the run came to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    folder = Path(os.environ.get("OUT") or ".")
    parser.add_argument("--json", type=Path, default=folder / "gpu.json", help="default: gpu.json in $OUT, else here")
    parser.add_argument("--page", type=Path, help="default: beside the JSON file")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rehearse", action="store_true", help="small sizes on a CPU; its numbers mean nothing")
    arguments = parser.parse_args()
    facts = {
        "begin": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": arguments.rehearse,
        "minutes": arguments.minutes,
    }
    page = arguments.page or arguments.json.with_suffix(".html")
    results = Results(arguments.json, page, facts, {part.name: part.title for part in PARTS}, make_page)
    run_parts(results, time.monotonic() + 60 * arguments.minutes, rehearse=arguments.rehearse)
    ok, failed, skipped = (results.count(status) for status in ("ok", "failed", "skipped"))
    print(f"{ok} measured, {failed} failed, {skipped} skipped: {arguments.json}, {page}", flush=True)
    return 0 if ok else 1


def run_parts(results: Results, end: float, *, rehearse: bool) -> None:
    """Every part in its share of the time that is left, of which what one does not take goes to the next."""
    for number, part in enumerate(PARTS):
        begin = time.monotonic()
        shares = [other.share for other in PARTS[number:]]
        part_end = begin + max(0.0, end - begin) * shares[0] / sum(shares)
        results.set_state(part.name, "running")
        make_session = partial(_session, results, part_end, rehearse)
        whole = run_part(part, make_session, part_end, results.add)
        results.set_state(part.name, "done" if whole else "cut off", time.monotonic() - begin)


def _session(
    results: Results,
    end: float,
    rehearse: bool,
    part: str,
    excluded: frozenset[str],
    done: frozenset[str],
    trying: Callable[[str], None],
) -> Session:
    """Made in the part's own process: the one before it must never have used the device."""
    if rehearse:
        torch.set_num_threads(1)
    device = torch.device("cpu" if rehearse else "cuda")
    sizes = rehearsal_sizes() if rehearse else real_sizes()
    return Session(part, device, clock_of(device), sizes, end, tuple(results.rows), excluded, done, trying)


if __name__ == "__main__":
    sys.exit(main())
