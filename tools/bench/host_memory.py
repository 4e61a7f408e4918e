"""Host memory in which a rank makes its parameters, for whole models and each stage of a curriculum.

    python tools/bench/host_memory.py [--json] [--models wan_14b,dit_30b] [--curriculum sora] [--stages NAME,...]
                                      [--ranks 256] [--rank 0] [--blocks N] [--node 8]

Each row is a process of its own: one rank of `--ranks` on a process group that reaches no one. It builds what it holds
of the model by the production code and makes every parameter's start value, its part of it and the cast to the run's
precision, for a device that keeps nothing (meta). What stands on a GPU in a run is so left out: weights, ZeRO-3's
shares, and the engine.

    base       resident memory of the interpreter and the libraries
    above      peak of resident memory above it while the model is built and its parameters are made
    node       (base + above) times the ranks of a node, `--node`
    seconds    of a processor, most of which goes into drawing start values
    ratio      above / the largest whole parameter in float32 (at most 2.5 is asked for, and 64 GB a node)

Memory is the kernel's own account (VmRSS, VmHWM). `--blocks` makes the first N blocks of the rank's alone: blocks are
alike, and the peak is one parameter's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.dit import DiT
from megavideo.model.init import initial_value
from megavideo.parallel.layers.sharding import shard_of
from megavideo.parallel.parallelize import build_stage, make_layers
from megavideo.testing.fake_ranks import META, fake_rank, held_parts, no_value, plan_of

Row = dict[str, Any]


def resident_bytes(field: str) -> int:
    """A field of /proc/self/status that is told in kB."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))


def measure(model: str, curriculum: str, stage: str, ranks: int, rank: int, blocks: int | None) -> Row:
    """Make the parameters of one rank in this process."""
    config = load(TrainRun, "train", [f"run={model}", f"curriculum={curriculum}", f"stage={stage}", "data.uri=none"])
    with fake_rank(rank, ranks):
        plan = plan_of(config)
        parts = [part[:blocks] for part in held_parts(plan, config.model.layers)]
        layers = make_layers(plan, CPU_FLASH, META)
        make = partial(build_stage, lambda layers, part: DiT(config.model, layers, part=part), layers)
        # once without values: libraries are loaded at their first use
        held = [make(part, start=no_value, plan=plan, device=META) for part in parts]
        shards = [(p.numel(), shard_of(p, 0, plan.mesh.tp).count) for module in held for p in module.parameters()]
        del held
        base, begin = resident_bytes("VmRSS"), time.process_time()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        for part in parts:
            make(part, start=partial(initial_value, seed=config.train.seed), plan=plan, device=META)
        above, seconds = resident_bytes("VmHWM") - base, time.process_time() - begin
    return {
        "model": model, "stage": stage, "layout": config.layout, "rank": rank, "blocks": sum(map(len, parts)),
        "held": sum(numel for numel, _ in shards), "drawn": sum(numel * count for numel, count in shards),
        "largest_bytes": 4 * max(numel * count for numel, count in shards), "base_bytes": base, "above_bytes": above,
        "cpu_seconds": round(seconds, 2),
    }  # fmt: skip


def in_a_process(words: argparse.Namespace, model: str, stage: str) -> Row:
    """A row, measured by a process that does nothing else."""
    asked = [sys.executable, __file__, "--one", f"{model}/{stage}", "--curriculum", words.curriculum]
    asked += ["--ranks", str(words.ranks), "--rank", str(words.rank)]
    asked += [] if words.blocks is None else ["--blocks", str(words.blocks)]
    # start values are drawn by one thread
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{model}/{stage}: {done.stderr}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    row["ratio"] = round(row["above_bytes"] / row["largest_bytes"], 3)
    row["node_gb"] = round(words.node * (row["base_bytes"] + row["above_bytes"]) / 1e9, 2)
    return row


def told(row: Row) -> str:
    """A row for a reader."""
    gb = {key: f"{row[key] / 1e9:.2f}" for key in ("held", "drawn", "base_bytes", "above_bytes")}
    return (
        f"{row['model']:8} {row['stage']:11} {row['layout']:24} {row['blocks']:2} blocks, {gb['held']:>5}e9 elements, "
        f"{gb['drawn']:>5}e9 drawn in {row['cpu_seconds']:4.0f} s; base {gb['base_bytes']} GB, above "
        f"{gb['above_bytes']} GB (ratio {row['ratio']:.2f}), node {row['node_gb']:.1f} GB"
    )


def stages(model: str, curriculum: str) -> list[str]:
    """Names of the stages of a curriculum."""
    config = load(TrainRun, "train", [f"run={model}", f"curriculum={curriculum}", "data.uri=none"])
    return list(config.stages)


def parse() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", default="wan_14b,dit_30b")
    parser.add_argument("--curriculum", default="sora")
    parser.add_argument("--stages", default="")
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--node", type=int, default=8)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Rows as they come, or one JSON object."""
    words = parse()
    if words.one:
        model, stage = words.one.split("/")
        print(json.dumps(measure(model, words.curriculum, stage, words.ranks, words.rank, words.blocks)))
        return
    rows: list[Row] = []
    for model in words.models.split(","):
        for stage in words.stages.split(",") if words.stages else stages(model, words.curriculum):
            row = in_a_process(words, model, stage)
            rows.append(row)
            if not words.json:
                print(told(row), flush=True)
    if words.json:
        print(json.dumps({"node": words.node, "rows": rows}))


if __name__ == "__main__":
    main()
