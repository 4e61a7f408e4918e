"""`megavideo preflight`: the nodes of a run, before it starts; under srun, torchrun or alone."""

from __future__ import annotations

from typing import Any

from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.preflight import PreflightRun

_WIDEST = 28


def _run(cfg: PreflightRun, texts: Texts) -> Any:
    from megavideo.preflight.run import preflight

    return preflight(cfg)


def describe(report: Any) -> str:
    """The lines a user reads: a row for each node and a column for each check, then every fault in full."""
    from megavideo.preflight.findings import CHECKS

    rows = [["node", *CHECKS]]
    for node in report.nodes:
        rows.append([node.host, *(_cell(node.checks.get(check)) for check in CHECKS)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    lines += [f"BAD {node.host}: {fault}" for node in report.nodes for fault in node.faults]
    lines += [
        f"slow pair {link.first} - {link.second}: {link.gb_per_second:.2f} GB/s; other pairs of both are not"
        for link in report.slow_links
    ]
    lines += [f"FAULT of no one node: {fault}" for fault in report.unlocated]
    good = sum(node.good for node in report.nodes)
    lines.append(
        f"{good} of {len(report.nodes)} nodes are good" + (f"; bad: {' '.join(report.bad)}" if report.bad else "")
    )
    return "\n".join(lines)


def _cell(finding: Any) -> str:
    if finding is None:
        return "-"
    if not finding.good:
        return "BAD"
    text: str = finding.text
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


VERB = Verb(
    name="preflight",
    summary="check the nodes of a run before it starts: store, output, disk, GPUs, clocks and links; name the bad ones",
    primary="preflight",
    schema=PreflightRun,
    run=_run,
    describe=describe,
    distributed=True,
    failed=lambda report: bool(report.bad or report.unlocated),
    examples=(
        "megavideo preflight output=runs",
        "srun megavideo preflight output=/shared/runs data.uri=s3://BUCKET/PREFIX bad_nodes=bad.txt",
        "srun --ntasks-per-node 1 megavideo preflight output=/shared/runs limits.gpus_per_node=8 --json",
        "torchrun --nproc-per-node 2 -m megavideo preflight output=runs data.uri=latents data.write=false",
    ),
)
