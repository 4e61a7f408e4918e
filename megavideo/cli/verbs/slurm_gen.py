"""`slurm-gen`, also `megavideo slurm-gen`: job scripts for a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megavideo.cli.verb import TextOption, Texts, Verb
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.errors import ConfigError, DataError


def _run(cfg: SlurmGenRun, texts: Texts) -> Any:
    from megavideo.launch.write import generate

    if cfg.check:
        return generate(cfg)
    from megavideo.data.storage.owners import Claim, owning

    try:
        with owning(Path(cfg.out), Claim("slurm-gen", "out= another folder")):
            return generate(cfg)
    except DataError as error:
        raise ConfigError("out", cfg.out, str(error), "name a folder of your own") from error


def _describe(report: Any) -> str:
    lines = [f"{report.nodes} nodes, {report.ranks} ranks"]
    width = max(len(name) for name in report.layouts)
    lines += [f"  {name.ljust(width)}  {layout}" for name, layout in report.layouts.items()]
    lines += [line for plan in report.plans.values() for line in plan]
    mark = "differs" if report.checked else "written"
    lines += [f"{mark if file in report.changed else 'same':8} {file}" for file in report.files]
    lines += [f"{'stale':8} {file}: not of this run and cluster" for file in report.stale]
    return "\n".join(lines)


VERB = Verb(
    name="slurm-gen",
    summary="write the Slurm job scripts of a run for a cluster, and check that its layouts fit",
    primary="slurm_gen",
    schema=SlurmGenRun,
    run=_run,
    describe=_describe,
    options=(
        TextOption("--check", None, "write nothing; status 1 where the scripts in out= are others", sets="check"),
    ),
    failed=lambda report: report.checked and bool(report.changed or report.stale),
    examples=(
        "slurm-gen cluster=h100_ib run=wan_14b curriculum=sora out=slurm",
        "slurm-gen cluster=h100_ib cluster.nodes=8 cluster.partition=gpu run=wan_1b curriculum=none out=jobs",
        "slurm-gen --check",
    ),
)
