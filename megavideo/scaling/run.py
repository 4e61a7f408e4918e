"""`megavideo fit`: points in, laws, a page and a model out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from megavideo.config.schema.fit import FitMethod, FitRun
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file
from megavideo.scaling.diagnostics import (
    Caution,
    conditioning,
    on_intervals,
    on_law,
    on_parabolas,
    on_points,
    on_use,
)
from megavideo.scaling.fitting import Fitter, intervals_of, resampled_losses
from megavideo.scaling.hyper import SettingLaw, fit_setting, reduce_settings
from megavideo.scaling.isoflop import fit_parabolas, parabola_bias, size_law, token_law
from megavideo.scaling.law import Law, TokenCost, fit_token_cost, optimum, size_exponent
from megavideo.scaling.page import page_text
from megavideo.scaling.points import Points, check_enough, choose
from megavideo.scaling.recommend import check_shape, model_yaml, recommend
from megavideo.scaling.report import FitReport, FittedLaw, ParabolaFit
from megavideo.scaling.runs import read_runs
from megavideo.scaling.table import read_table

_METHODS: tuple[FitMethod, ...] = ("projection", "huber")
_PAGE = "fit.html"


def run_fit(cfg: FitRun, place: Path) -> FitReport:
    """Fit laws to the points at `place`, write the page and what else was asked for, and return the numbers.

    Raises ConfigError where an output is there already or a setting has no effect on such points, DataError for points
    that cannot be read or are too few, and where an output cannot be written.
    """
    check_shape(cfg.shape)
    if cfg.export is not None and (Path(cfg.export).exists() or Path(cfg.export).is_symlink()):
        raise _there(Path(cfg.export))
    every = choose(_read(cfg, place), cfg.drop_highest, cfg.flops_below)
    report = fit_report(cfg, every, _page_of(cfg, place))
    written = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    page = page_text(report, reduce_settings(every), written)
    if cfg.export is not None and report.recommendation is not None:
        _export(Path(cfg.export), model_yaml(cfg.model, report.recommendation))
    try:
        write_file(Path(report.page), page.encode())
    except OSError as error:
        raise _unwritten("out", report.page, error) from error
    return report


def fit_report(cfg: FitRun, every: Points, page: Path) -> FitReport:
    """All numbers of points that were read and chosen; nothing is written."""
    points = reduce_settings(every)
    check_enough(points)
    cost = fit_token_cost(points.params, points.tokens, points.flops)
    budget = cfg.budget if cfg.budget is not None else float(points.budget.max())
    rng = np.random.default_rng(cfg.seed)
    laws = tuple(_fit_law(cfg, method, points, cost, budget, rng) for method in _METHODS)
    chosen = next(law for law in laws if law.method == cfg.law)
    isoflop, refused = _fit_isoflop(cfg, points, chosen.law, cost, rng)
    recommendation = None
    if cfg.clip_tokens is not None:
        recommendation = recommend(chosen.law, budget, cfg.model, cfg.shape, cfg.clip_tokens, cfg.text_tokens)
    report = FitReport(
        points=points.source,
        counted=points.counted,
        num_points=len(points),
        flops_least=float(points.flops.min()),
        flops_most=float(points.flops.max()),
        confidence=cfg.confidence,
        cost=cost,
        conditioning=conditioning(points, chosen.law),
        asked=cfg.law,
        laws=laws,
        isoflop=isoflop,
        learning_rate=_setting("learning_rate", every),
        batch_tokens=_setting("batch_tokens", every),
        budget=budget,
        recommendation=recommendation,
        cautions=(),
        page=str(page),
        exported=cfg.export,
    )
    return replace(report, cautions=tuple(_cautions(report, points, refused)))


def _read(cfg: FitRun, place: Path) -> Points:
    if place.is_dir():
        if cfg.six_nd:
            rule = "is for tables of language models, and the FLOPs of these runs are counted"
            raise ConfigError("six_nd", True, rule, "drop it")
        return read_runs(place, cfg.weights, cfg.level)
    for name, value in (("weights", cfg.weights), ("level", cfg.level)):
        if value != getattr(FitRun, name):
            raise ConfigError(name, value, "has no effect on a table", "drop it, or give a folder of runs")
    return read_table(place, cfg.columns, six_nd=cfg.six_nd)


def _page_of(cfg: FitRun, place: Path) -> Path:
    if cfg.out is not None:
        return Path(cfg.out)
    return place / _PAGE if place.is_dir() else place.with_name(f"{place.stem}_{_PAGE}")


def _export(path: Path, text: str) -> None:
    """Write a file that is not there, whole; of two that do so at once, one is told of the other's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)  # it is ours now; some shared file systems have no links, which would do it at once
    except FileExistsError as error:
        raise _there(path) from error
    except OSError as error:
        raise _unwritten("export", path, error) from error
    try:
        write_file(path, text.encode())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritten("export", path, error) from error


def _there(path: Path) -> ConfigError:
    return ConfigError("export", str(path), "is there already", "give another name, or remove it")


def _unwritten(field: str, path: str | Path, error: OSError) -> DataError:
    reason = error.strerror or error
    return DataError(f"{path}: cannot be written ({reason}). Remedy: set {field}= to a file that can be")


def _fit_law(
    cfg: FitRun, method: FitMethod, points: Points, cost: TokenCost, budget: float, rng: np.random.Generator
) -> FittedLaw:
    fitter = Fitter(method, cfg.residual, cfg.delta)
    law = fitter.fit(points)
    drawn = [
        fitter.fit_near(replace(points, loss=loss), law)
        for loss in resampled_losses(points, law, fitter, cfg.resamples, rng)
    ]
    found = _quantities(law, cost, budget)
    values = [_quantities(each, cost, budget) for each in drawn]
    best = optimum(law, cost, budget)
    errors = np.log(law.loss(points.params, points.tokens) / points.loss)
    exponent = size_exponent(law, cost)
    return FittedLaw(
        method, law, fitter.objective(points, law), float(np.sqrt(np.mean(errors**2))), exponent,
        1 - cost.power * exponent, best, intervals_of(found, values, cfg.confidence),
    )  # fmt: skip


def _quantities(law: Law, cost: TokenCost, budget: float) -> dict[str, float]:
    best, exponent = optimum(law, cost, budget), size_exponent(law, cost)
    return {
        "E": law.E, "A": law.A, "B": law.B, "alpha": law.alpha, "beta": law.beta, "size_exponent": exponent,
        "token_exponent": 1 - cost.power * exponent, "params": best.params, "tokens": best.tokens, "loss": best.loss,
    }  # fmt: skip


def _fit_isoflop(
    cfg: FitRun, points: Points, law: Law, cost: TokenCost, rng: np.random.Generator
) -> tuple[ParabolaFit, list[str]]:
    parabolas, refused = fit_parabolas(points)
    size, token = size_law(parabolas), token_law(parabolas)
    found, drawn = {}, []
    if size is not None and token is not None:
        found = {"size_exponent": size.power, "token_exponent": token.power}
        fitter = Fitter("projection", cfg.residual, cfg.delta)
        for loss in resampled_losses(points, law, fitter, cfg.resamples, rng):
            again, _ = fit_parabolas(replace(points, loss=loss))
            both = size_law(again), token_law(again)
            if both[0] is not None and both[1] is not None:
                drawn.append({"size_exponent": both[0].power, "token_exponent": both[1].power})
    bias = parabola_bias(points, law, cost)
    return ParabolaFit(tuple(parabolas), size, token, bias, intervals_of(found, drawn, cfg.confidence)), refused


def _setting(name: str, every: Points) -> SettingLaw | None:
    values, other = every.learning_rate, every.batch_tokens
    if name == "batch_tokens":
        values, other = other, values
    return None if values is None else fit_setting(name, every, values, other)


def _cautions(report: FitReport, points: Points, refused: list[str]) -> Iterator[Caution]:
    chosen = report.chosen
    errors = np.log(chosen.law.loss(points.params, points.tokens) / points.loss)
    yield from on_points(points)
    yield from on_law(points, chosen.law, report.conditioning, errors)
    for name in ("alpha", "beta"):
        if name in chosen.intervals:
            interval = chosen.intervals[name]
            yield from on_intervals(name, interval.low, interval.high, getattr(chosen.law, name))
    yield from on_parabolas(list(report.isoflop.parabolas), refused, report.isoflop.bias)
    yield from on_use(points, report.cost, report.budget, [law.optimum.params for law in report.laws])
    if report.recommendation is not None and report.recommendation.at_edge:
        yield Caution("shape_at_edge", "the best shape is the smallest or largest of the rule: change shape.head_dim")
