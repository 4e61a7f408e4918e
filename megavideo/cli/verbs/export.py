"""`megavideo export`: a checkpoint of any layout as diffusers or the original Wan code load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megavideo.cli.checkpoint_source import brought_here
from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.export import ExportRun


def _run(cfg: ExportRun, texts: Texts) -> Any:
    from megavideo.data.storage.owners import Claim, owning
    from megavideo.interop.export.run import export

    claim = Claim("export", "out= another place", is_file=True)  # its sign lies beside what will be renamed to it
    with owning(Path(cfg.out), claim), brought_here(cfg.ckpt) as folder:
        return export(cfg, folder)


VERB = Verb(
    name="export",
    summary="write a trained run as a pipeline or model of diffusers, or in the original Wan's names",
    primary="export",
    schema=ExportRun,
    run=_run,
    describe=describe_fields,
    failed=lambda report: report.verify is not None and not report.verify.passed,
    examples=(
        "megavideo export ckpt=runs/small out=small_wan parts.text_encoder=link",
        "megavideo export ckpt=s3://BUCKET/PREFIX/small out=small.safetensors format=single dtype=bf16",
    ),
)
