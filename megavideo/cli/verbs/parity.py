"""`megavideo parity`: layouts beside one process."""

from __future__ import annotations

from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import TextOption, Texts, Verb, Words
from megavideo.config.schema.parity import ParityRun

_LAYOUTS = Words(
    "LAYOUT", "a layout, as tp2-sp-cp2-ring; each is run on as many processes of this machine as it has", repeats=True
)


def _run(cfg: ParityRun, texts: Texts) -> Any:
    from megavideo.parity.run import run_parity

    return run_parity(cfg, texts.get(_LAYOUTS.metavar, ()))


def _describe(report: Any) -> str:
    if report.fp8 is not None:
        return describe_fields(report.fp8)
    columns = ("loss", "norm", "grad", "param", "ema")
    lines = [f"{'layout':<44} " + " ".join(f"{name:>8}" for name in columns) + "  largest of the last three"]
    for row in report.layouts:
        if row.error is not None:
            lines.append(f"{row.layout:<44} FAILED: {row.error.splitlines()[0]}")
            continue
        numbers = (row.loss_rel, row.grad_norm_rel, row.max_grad_rel, row.max_param_rel, row.max_ema_rel)
        mark = "" if row.within else "  OUTSIDE THE LIMITS"
        if row.host_reads is not None:
            mark = f"  {row.host_reads:g} host reads a step{mark}"
        lines.append(f"{row.layout:<44} " + " ".join(f"{number:8.1e}" for number in numbers) + f"  {row.worst}{mark}")
    if report.saved is not None:
        kept = report.saved
        share = kept.with_recompute / kept.without_recompute
        lines.append(f"kept for the backward pass of a pack: {kept.with_recompute} of {kept.without_recompute} bytes "
                     f"({share:.0%})")  # fmt: skip
    passed = len(report.layouts) - report.failed
    lines.append(f"{passed} of {len(report.layouts)} layouts give the gradients of one process, within the limits")
    return "\n".join(lines)


VERB = Verb(
    name="parity",
    summary="run layouts beside one process on this machine's CPU, and compare every gradient",
    primary="parity",
    schema=ParityRun,
    run=_run,
    describe=_describe,
    words=_LAYOUTS,
    failed=lambda report: report.failed > 0,
    options=(
        TextOption("--steps", "N", "steps of AdamW", sets="steps"),
        TextOption("--heads", "N", "attention heads of the model", sets="heads"),
        TextOption("--layers", "N", "blocks of the model", sets="num_layers"),
        TextOption("--tokens", "N", "video tokens in a pack", sets="tokens"),
        TextOption("--precision", "P", "fp32, bf16, or fp8 (beside bf16 in one process)", sets="precision"),
        TextOption(
            "--recompute", "KIND", "none, selective (with recompute.parts=[...]) or full", sets="recompute.kind"
        ),
        TextOption("--pack", "MIX", "mixed, images, one, halves, or grids as 1x4x4+5x4x3", sets="pack"),
        TextOption("--matrix", "M", "the project's own layouts: fast or full", sets="matrix"),
        TextOption(
            "--device-like",
            "D",
            "cpu, or gpu: collectives complete late, and passes read no values",
            sets="device_like",
        ),
        TextOption("--lora", "R", "train adapters of this rank beside every linear layer", sets="lora"),
        TextOption("--kernel", "K", "attention kernel of the layouts: cpu or stand-in", sets="kernel"),
    ),
    examples=(
        "megavideo parity tp2-sp cp2-ring-dp2-zero3",
        "megavideo parity tp2-sp-cp2-ring-pp2-zero1 --precision bf16 --json",
        "megavideo parity cp4-2d --heads 8 --tokens 128 --pack 1x4x4+5x4x4",
        "megavideo parity cp3-ring tp2-sp --device-like gpu",
        "megavideo parity tp2-sp-cp2-ring-zero3 --lora 4",
    ),
)
