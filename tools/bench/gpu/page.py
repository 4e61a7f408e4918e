"""The page of a run, made of what its JSON holds: tables of all rows, and bars where a comparison is to be seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from rows import shown

_TEMPLATE = "bench.html.j2"


@dataclass(frozen=True)
class Bar:
    """A value of a chart; `percent` of the chart's width."""

    label: str
    text: str
    percent: float
    kind: int


@dataclass(frozen=True)
class Chart:
    """Bars under each other; with `line`, a mark at so many percent of the width."""

    title: str
    bars: tuple[Bar, ...]
    line: float | None = None


# by part: title of a chart, and the values whose bars stand beside each other in it
_CHARTS: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "ceilings": (("TFLOP/s of matrix products", ("tflops",)), ("GB/s of copies", ("gb_per_s",))),
    "attention": (("TFLOP/s of attention, forward and backward", ("forward_tflops", "backward_tflops")),),
    "model": (("TFLOP/s of training steps", ("tflops",)), ("Tokens a second", ("tokens_per_s",))),
    "diffusers": (("Speed over diffusers', which is the line", ("ratio",)),),
    "predicted": (("Milliseconds, measured and predicted", ("measured_ms", "predicted_ms")),),
    "launches": (("Milliseconds of the host and of the whole", ("host_ms", "whole_ms")),),
}
_LINES = {"ratio": 1.0}


def make_page(data: Mapping[str, Any]) -> str:
    """The HTML of a run's JSON, whole in itself."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.FileSystemLoader(Path(__file__).parent), jinja2.PackageLoader("megavideo.observe")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    parts = [_part(part, [row for row in data["rows"] if row["part"] == part["name"]]) for part in data["parts"]]
    return environment.get_template(_TEMPLATE).render(data=data, parts=parts, headline=_headline(data))


def _headline(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = {status: sum(row["status"] == status for row in data["rows"]) for status in ("ok", "failed", "skipped")}
    facts = [("measured", str(counts["ok"])), ("failed", str(counts["failed"])), ("skipped", str(counts["skipped"]))]
    best = max((_number(row, "mfu_percent") or 0.0 for row in data["rows"]), default=0.0)
    if best:
        facts.append(("highest MFU", f"{best:.1f} %"))
    return [*facts, ("time", f"{data['seconds']:.0f} s")]


def _part(part: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "title": part["title"],
        "state": part["state"],
        "seconds": part["seconds"],
        "charts": [chart for title, keys in _CHARTS.get(part["name"], ()) for chart in _charts(title, keys, rows)],
        "tables": _tables([row for row in rows if row["status"] == "ok"]),
        "others": [(row["status"], row["case"], row["name"], row["note"]) for row in rows if row["status"] != "ok"],
    }


def _charts(title: str, keys: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> list[Chart]:
    found = [
        (f"{row['case']}: {row['name']}" + (f", {key}" if len(keys) > 1 else ""), value, number)
        for row in rows
        for number, key in enumerate(keys)
        if (value := _number(row, key)) is not None
    ]
    if not found:
        return []
    line = _LINES.get(keys[0])
    whole = max(max(value for _, value, _ in found), line or 0.0) or 1.0
    bars = tuple(Bar(label, shown(value), 100 * value / whole, number) for label, value, number in found)
    return [Chart(title, bars, None if line is None else 100 * line / whole)]


def _tables(rows: Iterable[Mapping[str, Any]]) -> list[tuple[list[str], list[list[str]]]]:
    """Rows whose values have the same names, in one table."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        cells = [shown(value) for value in row["values"].values()]
        tables.setdefault(tuple(row["values"]), []).append([row["case"], row["name"], *cells])
    return [(["case", "", *names], cells) for names, cells in tables.items()]


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row["values"].get(key)
    return float(value) if isinstance(value, (int, float)) else None
