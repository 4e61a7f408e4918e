"""`megavideo parity`: layouts beside one process, and what came of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from megavideo.config.layout import Layout, parse_layout
from megavideo.config.rules import check
from megavideo.config.schema.parity import ParityRun
from megavideo.errors import ConfigError
from megavideo.model.recompute import saved_bytes
from megavideo.parallel.fp8_probe import ProbeReport
from megavideo.parity.compare import Difference, Incomparable, compare
from megavideo.parity.matrix import FAST, FULL, Batch
from megavideo.parity.oracle import run_oracle, whole_model
from megavideo.parity.packs import step_input
from megavideo.parity.pool import Pool, RanksFailed
from megavideo.parity.probe import probe_fp8
from megavideo.parity.record import Record
from megavideo.parity.spec import ParitySpec, check_pack, in_own_names


@dataclass(frozen=True)
class Limits:
    """How far a layout may be from one process, relative: loss and gradient norm, and gradients and weights."""

    loss: float
    gradient: float


# What bf16 hides within its limits (of the weights: an update without weight decay 5e-4, one average missed 4e-3), fp32
# shows.
LIMITS = {"fp32": Limits(1e-5, 1e-4), "bf16": Limits(2e-2, 2e-2)}


@dataclass(frozen=True)
class LayoutParity:
    """One layout's differences from one process (see `Difference`), and whether they are within the limits.

    `error` tells why its processes did not come to their end, or cannot be compared; there are no numbers then (NaN, in
    JSON null). `host_reads` is how often a step reads values on the host, outside its passes, on the process that does
    so most; only with device_like=gpu.
    """

    layout: str
    case: str
    processes: int
    loss_rel: float
    grad_norm_rel: float
    max_grad_rel: float
    worst: str
    max_param_rel: float
    max_ema_rel: float
    within: bool
    seconds: float
    error: str | None = None
    host_reads: float | None = None


@dataclass(frozen=True)
class SavedBytes:
    """Bytes that one pack's forward pass keeps for the backward pass in one process, besides weights."""

    without_recompute: int
    with_recompute: int


@dataclass(frozen=True)
class ParityReport:
    """All layouts, the limits by precision and how many are outside; or the comparison of FP8 with bf16."""

    layouts: tuple[LayoutParity, ...]
    limits: dict[str, dict[str, float]]
    saved: SavedBytes | None = None
    fp8: ProbeReport | None = None
    failed: int = 0


def run_parity(run: ParityRun, layouts: Sequence[str]) -> ParityReport:
    """Run every layout. Raises ConfigError, before any is run, for one that no process should be started for."""
    limits = {name: asdict(value) for name, value in LIMITS.items()}
    if run.matrix != "none":
        heard: tuple[str, ...] = ("matrix", "device_like", "kernel")
        _refuse_others(run, heard, f"matrix={run.matrix}", "drop it, or name layouts instead of the matrix")
    if run.precision == "fp8":
        heard = ("precision", "heads", "num_layers", "tokens", "pack", "modulation", "seed")
        _refuse_others(run, heard, "precision=fp8", "drop it: FP8 is compared with bf16 on the first pack alone")
        return ParityReport((), limits, fp8=probe_fp8(ParitySpec.of(run), layouts))
    batches = _batches(run, layouts)
    for batch in batches:
        for layout in batch.layouts:
            check_parity_layout(batch.spec, layout)
    rows = tuple(row for batch in batches for row in _run_batch(batch, Pool()))
    saved = None if run.recompute.kind == "none" else _saved(ParitySpec.of(run))
    return ParityReport(rows, limits, saved, failed=sum(not row.within for row in rows))


def check_parity_layout(spec: ParitySpec, text: str) -> None:
    """Raise ConfigError, with the names of parity's settings, where a rule of layout, model and packs is broken."""
    check_pack(spec)
    try:
        check(spec.as_training(text))
    except ConfigError as error:
        raise in_own_names(error) from error


def run_layout(pool: Pool, spec: ParitySpec, text: str, inside: str = "") -> list[Record]:
    """Run one layout; `inside` as in `Pool.run`."""
    return pool.run(spec, text, num_processes(parse_layout(text)), inside)


def compare_layout(pool: Pool, spec: ParitySpec, oracle: Record, text: str, inside: str = "") -> Difference:
    """Run one layout, and compare it with the oracle's record; `inside` as in `Pool.run`."""
    return compare(text, oracle, run_layout(pool, spec, text, inside), spec.precision)


def num_processes(layout: Layout) -> int:
    """Processes of a layout, with one replica where dp is left open."""
    return layout.model_size * (layout.dp or 1)


def with_master_weights(text: str, precision: str) -> str:
    """A layout that says nothing of ZeRO, in bf16: with ZeRO-1, which holds the fp32 weights that bf16 needs."""
    return f"{text}-zero1" if precision == "bf16" and "zero" not in text else text


def _batches(run: ParityRun, layouts: Sequence[str]) -> list[Batch]:
    spec = ParitySpec.of(run)
    named = tuple(with_master_weights(text, spec.precision) for text in layouts)
    batches = [Batch("asked for", spec, named)] if layouts else []
    if run.matrix != "none":
        chosen = {"fast": FAST, "full": FULL}[run.matrix]
        batches += [
            replace(batch, spec=replace(batch.spec, device_like=run.device_like, kernel=run.kernel)) for batch in chosen
        ]
    if not batches:
        raise ConfigError("LAYOUT", None, "is required", "name layouts, as tp2-sp cp2-ring, or give --matrix fast")
    return batches


def _refuse_others(run: ParityRun, heard: Sequence[str], because: str, remedy: str) -> None:
    """Raise ConfigError for a setting that is given and none of those `heard`, as it would have no effect."""
    plain = ParityRun()
    for field in fields(run):
        value: Any = getattr(run, field.name)
        if field.name not in heard and value != getattr(plain, field.name):
            raise ConfigError(field.name, value, f"has no effect with {because}", remedy)


def _saved(spec: ParitySpec) -> SavedBytes:
    dtype = torch.float32 if spec.precision == "fp32" else torch.bfloat16
    pack = step_input(spec, 0, 0, 1).batches[0].to(torch.device("cpu"), dtype).pack
    counts = []
    for recompute in (None, spec.recompute):
        model = whole_model(spec, recompute).to(dtype)
        counts.append(saved_bytes(partial(model, pack), model.parameters()))
    return SavedBytes(*counts)


def _run_batch(batch: Batch, pool: Pool) -> Iterator[LayoutParity]:
    log = logging.getLogger(__name__)
    spec = batch.spec
    oracle = run_oracle(spec)
    log.info("one process (%s): loss %.6f to %.6f", batch.name, oracle.losses[0], oracle.losses[-1])
    limits = LIMITS[spec.precision]
    for text in batch.layouts:
        begin, error, host_reads = time.monotonic(), None, None
        try:
            records = run_layout(pool, spec, text)
            found = compare(text, oracle, records, spec.precision)
            host_reads = _host_reads(records, spec.steps)
        except (RanksFailed, Incomparable) as failure:  # the layouts that follow are run all the same
            found = Difference(text, math.nan, math.nan, math.nan, "", math.nan, math.nan)
            error = str(failure)
        seconds = time.monotonic() - begin
        within = found.within(limits.loss, limits.gradient)
        told = error or (
            f"loss {found.loss_rel:.1e}  norm {found.grad_norm_rel:.1e}  grad {found.max_grad_rel:.1e}  "
            f"param {found.max_param_rel:.1e}  ema {found.max_ema_rel:.1e}"
        )
        log.info("%s %-44s %s  (%.1f s)", "ok  " if within else "FAIL", text, told, seconds)
        yield LayoutParity(
            case=batch.name, processes=num_processes(parse_layout(text)), within=within, seconds=round(seconds, 2),
            error=error, host_reads=host_reads, **asdict(found),
        )  # fmt: skip


def _host_reads(records: Sequence[Record], steps: int) -> float | None:
    """Reads a step, outside its passes, on the process that makes most of them; None where they were not counted."""
    counted = [record.host_reads for record in records if record.host_reads is not None]
    # ZeRO-3 reads within passes too, in the first two of a run
    outside = [sum(n for key, n in reads.items() if key.startswith("between/")) for reads in counted]
    return max(outside) / steps if outside else None
