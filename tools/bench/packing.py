"""The step plan beside padding and bucketing on three mixes: fill, balance over ranks, planning time, memory.

    python tools/bench/packing.py [--json] [--samples 100000] [--ranks 8] [--steps 100]

Every method has the same budget of tokens for each forward pass of a rank. Fill is real tokens over the tokens that are
computed. Balance is the mean over the maximum of the ranks' FLOPs in a step (those of a 1.3B Wan DiT, padding counted
where it is attended to), averaged over steps. Times are of one process's CPU. Mapped memory, the table of sizes and
ids, is told per million samples; private memory is what a rank holds besides, however many the samples.

  plan       megavideo.data.plan.step_plan
  padding    samples in random order, as many in a batch as the longest of all allows; padded to the longest of a batch
  bucketing  buckets by latent frames (0-1, 2, 3-4, 5-8, ...) and square side (steps of 128 pixels), padded to the
             bucket; a rank takes a batch of one bucket, as many samples as the budget allows
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.step_plan import PlanSettings, StepPlan, rank_share
from megavideo.data.table.sample_table import SampleTable, make_table
from megavideo.planning.flops import BlockShape, forward_flops
from megavideo.types import Grid, SampleInfo

SHAPE = BlockShape(layers=30, width=1536, ffn=8960)
PATCH = (1, 2, 2)
LONGEST_CAPTION = 300


@dataclass(frozen=True)
class Mix:
    """Sides of a square of the same area in pixels, frames (4k + 1), and the budget of a pack."""

    side: tuple[int, int]
    frames: tuple[int, int]
    tokens_per_pack: int
    text_tokens_per_pack: int


MIXES = {
    "images, 256 to 1024": Mix((256, 1024), (1, 1), 32_768, 16_384),
    "video, 256 to 512, 5 to 65 frames": Mix((256, 512), (5, 65), 75_600, 16_384),
    "video, 1024, 17 to 129 frames": Mix((1024, 1024), (17, 129), 589_824, 16_384),
}


@dataclass(frozen=True)
class Row:
    """One method on one mix; `packs_per_rank` forward passes make a step. Empty where a method has no such figure."""

    mix: str
    method: str
    packs_per_rank: int
    fill: float
    balance: float
    worst_balance: float
    microseconds_per_sample: float | None = None
    mapped_mb_per_million: float | None = None
    private_mb: float | None = None
    max_segments: int | None = None


def samples(mix: Mix, count: int) -> list[SampleInfo]:
    """Samples whose sides are log-uniform, frames uniform and aspect ratios log-uniform from 9:21 to 21:9."""
    rng = np.random.default_rng(0)
    aspect = np.exp(rng.uniform(-1, 1, count) * np.log(21 / 9))
    side = np.exp(rng.uniform(np.log(mix.side[0]), np.log(mix.side[1]), count))
    frames = rng.integers(mix.frames[0] // 4, mix.frames[1] // 4 + 1, count)
    height, width = (np.rint(side * shape / 16).astype(int) * 2 for shape in (aspect**0.5, aspect**-0.5))
    text = rng.integers(30, LONGEST_CAPTION + 1, count)
    sizes = zip((1 + frames).tolist(), height.tolist(), width.tolist(), text.tolist(), strict=True)
    return [SampleInfo(f"clip-{i:09d}", i, Grid(t, h, w), n, 24.0, "", "") for i, (t, h, w, n) in enumerate(sizes)]


def balance(costs: np.ndarray) -> tuple[float, float]:
    """Mean and least of mean over maximum; `costs` [steps, ranks]."""
    ratio = costs.mean(axis=1) / costs.max(axis=1)
    return float(ratio.mean()), float(ratio.min())


def plan_settings(mix: Mix, packs_per_step: int) -> PlanSettings:
    """As training would give them, with as many segments as the data asks for."""
    return PlanSettings(PATCH, PackLimits(mix.tokens_per_pack, mix.text_tokens_per_pack, 16_384), packs_per_step, 0)


def planned(name: str, mix: Mix, table: SampleTable, ranks: int, steps: int) -> Iterator[Row]:
    """Rows of the step plan. The time is that of the recipe and of every step of a whole cycle."""
    begin = time.process_time()
    plan = StepPlan(table, plan_settings(mix, ranks))
    whole = [plan.step(step) for step in range(plan.packs_per_cycle // ranks)]
    elapsed = time.process_time() - begin
    packs = [pack for step in whole for pack in step]
    visits = sum(len(pack) for pack in packs)
    fill = sum(s.grid.num_tokens for pack in packs for s in pack) / (len(packs) * mix.tokens_per_pack)
    mapped = sum(getattr(table, column).nbytes for column in table.__dataclass_fields__ if column != "groups")
    for each in (1, 2, 4):
        starts = range(0, len(packs) - ranks * each + 1, ranks * each)[:steps]
        costs = [
            [sum(map(pack_flops, rank_share(packs[at : at + ranks * each], rank, ranks))) for rank in range(ranks)]
            for at in starts
        ]
        row = Row(name, "plan", each, fill, *balance(np.array(costs, float)))
        yield (
            row
            if each > 1
            else Row(
                **asdict(row)
                | {
                    "microseconds_per_sample": elapsed / visits * 1e6,
                    "mapped_mb_per_million": mapped / len(table),
                    "private_mb": private_bytes(mix, table, ranks) / 1e6,
                    "max_segments": plan.max_segments,
                }
            )
        )


def private_bytes(mix: Mix, table: SampleTable, ranks: int) -> int:
    """What a rank holds besides the table, after its first step."""
    tracemalloc.start()
    plan = StepPlan(table, plan_settings(mix, ranks))
    plan.step(0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held


def pack_flops(pack: Sequence) -> float:
    """Forward FLOPs of one pack's samples."""
    return float(sum(forward_flops(SHAPE, s.grid.num_tokens, s.text_tokens) for s in pack))


def padded(name: str, mix: Mix, tokens: np.ndarray, ranks: int, steps: int) -> Row:
    """Batches of equally many samples, each padded to its longest."""
    order = np.random.default_rng(1).permutation(tokens)
    each = max(1, mix.tokens_per_pack // int(tokens.max()))
    batches = order[: len(order) // (each * ranks) * each * ranks].reshape(-1, ranks, each)[:steps]
    longest = batches.max(axis=2)
    costs = each * np.vectorize(lambda n: float(forward_flops(SHAPE, int(n), LONGEST_CAPTION)))(longest)
    return Row(name, "padding", 1, float(batches.sum() / (longest * each).sum()), *balance(costs))


def bucketed(name: str, mix: Mix, infos: Sequence[SampleInfo], ranks: int, steps: int) -> Row:
    """Batches of one bucket each, drawn as often as the bucket has batches."""
    rng = np.random.default_rng(2)
    latent = np.array([[s.latent.t, s.latent.h, s.latent.w] for s in infos])
    tokens = latent.prod(axis=1) // 4
    frames = 2 ** np.ceil(np.log2(latent[:, 0])).astype(int)
    side = np.ceil(np.sqrt(latent[:, 1] * latent[:, 2]) * 8 / 128).astype(int)
    batches: list[tuple[int, int, int]] = []  # real tokens, samples, tokens of the longest
    for bucket in np.unique(np.stack([frames, side], axis=1), axis=0):
        members = rng.permutation(tokens[(frames == bucket[0]) & (side == bucket[1])])
        longest = int(members.max())
        each = max(1, mix.tokens_per_pack // longest)
        batches += [(int(members[at : at + each].sum()), each, longest) for at in range(0, len(members), each)]
    drawn = [batches[i] for i in rng.permutation(len(batches))]
    drawn = drawn[: min(steps, len(drawn) // ranks) * ranks]
    costs = np.array([each * float(forward_flops(SHAPE, longest, LONGEST_CAPTION)) for _, each, longest in drawn])
    fill = sum(real for real, _, _ in drawn) / sum(each * longest for _, each, longest in drawn)
    return Row(name, "bucketing", 1, fill, *balance(costs.reshape(-1, ranks)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    rows: list[Row] = []
    for name, mix in MIXES.items():
        infos = samples(mix, given.samples)
        tokens = np.array([s.latent.t * s.latent.h * s.latent.w // 4 for s in infos])
        rows += planned(name, mix, make_table(infos), given.ranks, given.steps)
        rows.append(padded(name, mix, tokens, given.ranks, given.steps))
        rows.append(bucketed(name, mix, infos, given.ranks, given.steps))
    if given.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "mixes": {n: asdict(m) for n, m in MIXES.items()}}))
        return
    heads = "packs/rank  fill   balance   worst us/sample  mapped MB/million  private MB  segments"
    print(f"{'':34s} {'method':10s} {heads}")
    for row in rows:
        figures = (row.microseconds_per_sample, row.mapped_mb_per_million, row.private_mb, row.max_segments)
        texts = ("" if figure is None else f"{figure:.1f}" for figure in figures)
        print(
            f"{row.mix:34s} {row.method:10s} {row.packs_per_rank:10d} {row.fill:6.4f}  {row.balance:6.4f} "
            f"{row.worst_balance:6.4f}  {next(texts):>9s}  {next(texts):>17s}  {next(texts):>10s}  {next(texts):>8s}"
        )


if __name__ == "__main__":
    main()
