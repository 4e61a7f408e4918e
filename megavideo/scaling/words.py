"""A fit in words: the lines and tables that the command line and the page share."""

from __future__ import annotations

from megavideo.scaling.fitting import Interval
from megavideo.scaling.hyper import SettingLaw
from megavideo.scaling.report import FitReport

METHOD_NAMES = {"projection": "variable projection", "huber": "Huber, many starts"}
LAW_HEAD = ("law", "E", "A", "B", "alpha", "beta", "N ~ C^", "D ~ C^", "error", "objective")
PARABOLA_HEAD = ("budget, FLOPs", "points", "best parameters", "tokens", "lowest loss", "off the middle")
OPTIMUM_HEAD = ("law", "parameters", "tokens", "tokens a parameter", "loss")
SHAPE_HEAD = ("layers", "width", "feed-forward", "heads", "parameters", "tokens", "loss")


def law_rows(report: FitReport) -> list[tuple[str, ...]]:
    """A row for each method, and below it the intervals where there are any."""
    rows = []
    for fitted in report.laws:
        law = fitted.law
        values = (law.E, law.A, law.B, law.alpha, law.beta, fitted.size_exponent, fitted.token_exponent)
        rows.append((
            METHOD_NAMES[fitted.method], *(f"{value:.5g}" for value in values), f"{fitted.error:.2%}",
            f"{fitted.objective:.5g}",
        ))  # fmt: skip
        if fitted.intervals:
            names = ("E", "A", "B", "alpha", "beta", "size_exponent", "token_exponent")
            rows.append(
                (f"{report.confidence:.0%} interval", *(_interval(fitted.intervals, name) for name in names), "", "")
            )
    return rows


def parabola_rows(report: FitReport) -> list[tuple[str, ...]]:
    """A row for each budget."""
    return [
        (
            f"{p.budget:.3g}",
            str(p.num_points),
            f"{p.params:.4g}",
            f"{p.tokens:.4g}",
            f"{p.lowest:.4f}",
            f"{p.offset:+.0%}",
        )
        for p in report.isoflop.parabolas
    ]


def optimum_rows(report: FitReport) -> list[tuple[str, ...]]:
    """What the budget is best spent on by each method, with intervals; parabolas last."""
    rows: list[tuple[str, ...]] = []
    for fitted in report.laws:
        best = fitted.optimum
        ratio = f"{best.tokens / best.params:.3g}"
        rows.append(
            (METHOD_NAMES[fitted.method], f"{best.params:.4g}", f"{best.tokens:.4g}", ratio, f"{best.loss:.4f}")
        )
        if fitted.intervals:
            params, tokens, loss = (_interval(fitted.intervals, name) for name in ("params", "tokens", "loss"))
            rows.append((f"{report.confidence:.0%} interval", params, tokens, "", loss))
    size, token = report.isoflop.size_law, report.isoflop.token_law
    if size is not None and token is not None:
        best_params, best_tokens = float(size.at(report.budget)), float(token.at(report.budget))
        ratio = f"{best_tokens / best_params:.3g}"
        rows.append(("parabolas", f"{best_params:.4g}", f"{best_tokens:.4g}", ratio, ""))
    return rows


def shape_rows(report: FitReport) -> list[tuple[str, ...]]:
    """The recommended shape and those around it."""
    found = report.recommendation
    if found is None:
        return []
    return [
        (
            str(each.layers), str(each.width), str(each.ffn), str(each.heads), f"{each.params:,}", f"{each.tokens:.4g}",
            f"{each.loss:.4f}" + (" <-" if each == found.best else ""),
        )
        for each in found.around
    ]  # fmt: skip


def power_words(report: FitReport) -> list[str]:
    """Power laws in one line each: of the parabolas, of learning rate and batch, and of the cost of a token."""
    lines = []
    isoflop, cost = report.isoflop, report.cost
    if isoflop.size_law is not None and isoflop.token_law is not None:
        for letter, law, name in (("N", isoflop.size_law, "size_exponent"), ("D", isoflop.token_law, "token_exponent")):
            held = _interval(isoflop.intervals, name)
            told = f" ({report.confidence:.0%}: {held})" if held else ""
            lines.append(f"parabolas: {letter} = {law.factor:.4g} C^{law.power:.4f}{told}")
    for setting_law in (report.learning_rate, report.batch_tokens):
        if setting_law is not None:
            lines.append(_setting_words(setting_law))
    told = f"{cost.factor:.4g} N^{cost.power:.4f}, off by {cost.worst:.2%} at the most"
    lines.append(f"FLOPs of a token ({report.counted}): {told}")
    whole, projected = report.conditioning.whole, report.conditioning.projected
    lines.append(f"condition number: {projected:.3g} of the exponents, {whole:.1e} of all five numbers at once")
    return lines


def plain_text(report: FitReport) -> str:
    """The report of the command line."""
    lines = [
        f"{report.num_points} points of {report.flops_least:.3g} to {report.flops_most:.3g} FLOPs: "
        "L = E + A/N^alpha + B/D^beta",
        *_table(LAW_HEAD, law_rows(report)),
        "",
        *power_words(report),
        "",
        f"{report.budget:.4g} FLOPs are best spent on",
        *_table(OPTIMUM_HEAD, optimum_rows(report)),
    ]  # fmt: skip
    if report.recommendation is not None:
        found = report.recommendation
        lines += ["", f"shapes for clips of {found.clip_tokens:,} tokens, FLOPs counted for each",
                  *_table(SHAPE_HEAD, shape_rows(report))]  # fmt: skip
    lines += [""] if report.cautions else []
    lines += [f"caution  {caution.kind}: {caution.words}" for caution in report.cautions]
    lines += [f"page     {report.page}"] + ([f"model    {report.exported}"] if report.exported else [])
    return "\n".join(lines)


def _setting_words(law: SettingLaw) -> str:
    both = (("T", law.token_power), ("N", law.size_power))
    powers = " ".join(f"{letter}^{power:.4f}" for letter, power in both if power is not None)
    return f"{law.setting} = {law.factor:.4g} {powers} over {len(law.groups)} groups, spread {law.spread:.1%}"


def _interval(intervals: dict[str, Interval], name: str) -> str:
    found = intervals.get(name)
    return "" if found is None else f"{found.low:.4g} to {found.high:.4g}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    return [
        "  ".join(cell.ljust(width) if not place else cell.rjust(width)
                  for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in (head, *rows)
    ]  # fmt: skip
