"""`megavideo export`: a checkpoint of any layout as diffusers or the original Wan code load it."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from megavideo.cli.checkpoint_source import brought_here
from megavideo.cli.describe import describe_fields, one_line
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.export import ExportRun

_WORST = 5


def _run(cfg: ExportRun, texts: Texts) -> Any:
    from megavideo.data.storage.owners import Claim, owning
    from megavideo.interop.export.run import export

    claim = Claim("export", "out= another place", is_file=True)  # its sign lies beside what will be renamed to it
    with owning(Path(cfg.out), claim), ExitStack() as stack:
        places = [cfg.ckpt] if cfg.low_ckpt is None else [cfg.ckpt, cfg.low_ckpt]
        folders = [stack.enter_context(brought_here(place)) for place in places]
        report = export(cfg, *folders)
        if report.quantization is None:
            return report
        from megavideo.generate.quantised import compared

        return compared(report, cfg, folders[0])


def _describe(report: Any) -> str:
    """What quantisation lost stands below the rest, in full for the worst matrices alone."""
    fields = dataclasses.asdict(report)
    lost = fields.pop("quantization")
    text = describe_fields(fields)
    if lost is None:
        return text
    worst = lost.pop("matrices")[:_WORST]
    lines = [describe_fields(lost), f"worst {len(worst)} of {lost['num_matrices']} matrices"]
    return "\n".join([text, "", *lines, *(f"  {one_line(matrix)}" for matrix in worst)])


VERB = Verb(
    name="export",
    summary="write a trained run as a pipeline or model of diffusers, or in the original Wan's names",
    primary="export",
    schema=ExportRun,
    run=_run,
    describe=_describe,
    failed=lambda report: report.verify is not None and not report.verify.passed,
    examples=(
        "megavideo export ckpt=runs/small out=small_wan parts.text_encoder=link",
        "megavideo export ckpt=runs/high low_ckpt=runs/low boundary=0.875 out=pair",
        "megavideo export ckpt=s3://BUCKET/PREFIX/small out=small.safetensors format=single dtype=bf16",
        "megavideo export ckpt=runs/small out=small_fp8 format=transformer dtype=bf16 quantization=fp8",
    ),
)
