"""`megavideo import`: weights of Wan as a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.import_ import ImportRun


def _run(cfg: ImportRun, texts: Texts) -> Any:
    from megavideo.data.storage.owners import Claim, owning
    from megavideo.interop.import_run import import_weights

    claim = Claim("import", "out= another folder", is_file=True)  # its sign lies beside what will be renamed to it
    with owning(Path(cfg.out), claim):
        return import_weights(cfg)


VERB = Verb(
    name="import",
    summary="take weights of Wan, in diffusers' or the original form, as a run to sample and train from",
    primary="import",
    schema=ImportRun,
    run=_run,
    describe=describe_fields,
    examples=(
        "megavideo import src=Wan2.1-T2V-1.3B-Diffusers out=runs/wan",
        "megavideo import src=Wan2.2-T2V-A14B expert=high out=runs/wan_high",
    ),
)
