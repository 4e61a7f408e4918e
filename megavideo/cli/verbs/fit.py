"""`megavideo fit`: scaling laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megavideo.cli.verb import TextOption, Texts, Verb, Words
from megavideo.config.schema.fit import FitRun
from megavideo.errors import ConfigError

_POINTS = Words("POINTS", "a CSV table of trained models, or a folder of runs")


def _run(cfg: FitRun, texts: Texts) -> Any:
    words = texts.get(_POINTS.metavar, ())
    if len(words) + (cfg.points is not None) > 1:
        given = [*words, *([cfg.points] if cfg.points else [])]
        raise ConfigError("points", given, "takes one place", "put the points into one table or folder")
    place = cfg.points if cfg.points is not None else next(iter(words), None)
    if place is None:
        remedy = "write `megavideo fit POINTS` with a CSV table or a folder of runs"
        raise ConfigError("points", None, "is required", remedy)
    from megavideo.scaling.run import run_fit

    return run_fit(cfg, Path(place))


def _describe(report: Any) -> str:
    from megavideo.scaling.words import plain_text

    return plain_text(report)


VERB = Verb(
    name="fit",
    summary="fit scaling laws to trained models, and tell what a budget of FLOPs is best spent on",
    primary="fit",
    schema=FitRun,
    run=_run,
    describe=_describe,
    words=_POINTS,
    options=(TextOption("--budget", "FLOPS", "training FLOPs whose best spending is asked", sets="budget"),),
    examples=(
        "megavideo fit runs/sweep --budget 1e21 clip_tokens=32760 export=configs/model/next.yaml",
        "megavideo fit points.csv columns.flops=budget --json",
        "megavideo fit language.csv six_nd=true law=huber confidence=0.95",
    ),
)
