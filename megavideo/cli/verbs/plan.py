"""`megavideo plan`: what a run needs and takes on a cluster, before it is started."""

from __future__ import annotations

from typing import Any

from megavideo.cli.verb import TextOption, Texts, Verb
from megavideo.config.schema.plan import PlanRun


def _run(cfg: PlanRun, texts: Texts) -> Any:
    from megavideo.planning.run import make_plan

    del texts
    return make_plan(cfg)


def _describe(report: Any) -> str:
    from megavideo.planning.text import describe

    return describe(report)


VERB = Verb(
    name="plan",
    summary="tell memory, time, cost and faults of a run on a cluster, or search for its fastest layout; needs no GPU",
    primary="plan",
    schema=PlanRun,
    run=_run,
    describe=_describe,
    options=(
        TextOption("--search", None, "rank all legal layouts and recomputation that fit", sets="search"),
        TextOption(
            "--calibrate", "FILE", "fit the model's free constants on a table of measured steps", sets="calibrate"
        ),
        TextOption("--validate", "FILE", "score the model on a table of measured steps", sets="validate"),
    ),
    failed=lambda report: not report.fits,
    examples=(
        "megavideo plan run=wan_14b cluster=h100_ib",
        "megavideo plan run=wan_14b curriculum=sora stage=long_1024 cluster=h100_ib --json",
        "megavideo plan run=wan_14b cluster=h100_ib cluster.nodes=8 --search",
        "megavideo plan --validate measured.csv",
    ),
)
