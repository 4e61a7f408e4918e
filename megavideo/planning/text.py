"""A plan as lines of text: tables, and bars for memory and time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_BAR = 40
_GB = 1e9
_TIMES = {
    "products": "matrix products", "attention": "attention", "elements": "other kernels", "recompute": "recomputation",
    "head": "output head", "launch": "waiting for launches", "tensor": "tensor parallel", "context": "context parallel",
    "pipeline": "pipeline sends", "bubble": "pipeline bubble", "data": "gradients and weights", "update": "update",
}  # fmt: skip
_MARKS = "#=+o.:*%@~^-"
_TIMELINE = 96


def describe(report: Any) -> str:
    """All that a report holds."""
    lines: list[str] = []
    for stage in report.stages:
        lines += [*_stage(stage), ""]
    for found in report.searches:
        lines += [*_search(found), ""]
    if report.fit is not None:
        lines += _fit(report.fit)
    if report.validation is not None:
        lines += _validation(report.validation)
    return "\n".join(lines).rstrip()


def two_lines(stage: Mapping[str, Any]) -> list[str]:
    """The account of a stage in short."""
    peak, has = stage["memory_peak"] / _GB, stage["memory_of_gpu"] / _GB
    fits = "fits" if stage["fits"] else "DOES NOT FIT"
    return [
        f"{stage['stage'] or 'run'}: {stage['layout']} on {stage['gpus']} {stage['chip']}: {fits}, "
        f"{peak:.1f} of {has:.0f} GB a GPU",
        f"  {stage['step_seconds']:.3g} s a step, MFU {100 * stage['mfu']:.1f} %, "
        f"{stage['tokens_per_second']:,.0f} tokens/s, {stage['days']:.3g} days of {stage['steps']:,} steps",
    ]


def _stage(stage: Mapping[str, Any]) -> list[str]:
    return [
        *two_lines(stage),
        *(f"  changed: {text}" for text in stage["changed"]),
        *(["  uncalibrated: no measured step of this chip stands behind its times"] if not stage["calibrated"] else []),
        "",
        *_memory(stage),
        "",
        *_time(stage),
        "",
        *_figures(stage),
        *(f"  assumed: {text}" for text in stage["assumed"]),
        f"  assumed: {', '.join(stage['memory_assumed'])}",
        *_would_fit(stage),
    ]


def _memory(stage: Mapping[str, Any]) -> list[str]:
    parts = {name: value for name, value in stage["memory_bytes"].items() if value}
    whole = max(stage["memory_of_gpu"], sum(parts.values()))
    rank = f", pipeline rank {stage['pipeline_rank']}" if stage["pipeline_rank"] else ""
    lines = [f"  memory of a GPU at its height (forward and backward{rank}), GB of {stage['memory_of_gpu'] / _GB:.0f}"]
    for name, value in parts.items():
        mark = "*" if name in stage["memory_assumed"] else " "
        lines.append(f"    {name:27}{mark}{value / _GB:8.2f}  {_bar(value / whole)}")
    lines.append(
        "    peaks: " + ", ".join(f"{name} {value / _GB:.1f}" for name, value in stage["memory_moments"].items())
    )
    if stage["host_bytes"]:
        lines.append(f"    host memory of a rank: {stage['host_bytes'] / _GB:.1f} GB")
    return lines


def _time(stage: Mapping[str, Any]) -> list[str]:
    parts = {name: value for name, value in stage["seconds"].items() if value > 0.001 * stage["step_seconds"]}
    lines = [
        f"  a step of {stage['step_seconds']:.4g} s, and {stage['seconds_hidden']:.3g} s of communication beside it"
    ]
    timeline = ""
    for mark, (name, value) in zip(_MARKS, parts.items(), strict=False):
        share = value / stage["step_seconds"]
        timeline += mark * round(share * _TIMELINE)
        lines.append(f"    {mark} {_TIMES[name]:26}{value:8.3f} s {100 * share:5.1f} %")
    return [*lines, f"    |{timeline}|"]


def _figures(stage: Mapping[str, Any]) -> list[str]:
    sent = ", ".join(f"{name} {value / _GB:.2f}" for name, value in stage["sent"].items() if value) or "nothing"
    cost = "" if stage["cost"] is None else f", cost {stage['cost']:,.0f}"
    saved, seconds = stage["checkpoint_bytes"] / _GB, stage["checkpoint_seconds"]
    return [
        f"  {stage['parameters'] / 1e9:.3f} billion parameters; {stage['flops'] / 1e15:,.1f} PFLOP and "
        f"{stage['tokens']:,} tokens a step",
        f"  sent by a GPU in a step, GB: {sent}",
        f"  {stage['gpu_hours']:,.0f} GPU hours, {stage['megawatt_hours']:,.1f} MWh of GPUs at full power{cost}",
        f"  checkpoint {saved:.1f} GB in {seconds:.1f} s, best every {stage['checkpoint_every']:,} steps; "
        f"{stage['faults']:.1f} faults expected",
        f"  from the store: {stage['input_bytes_per_second'] / 1e6:,.1f} MB/s",
    ]


def _would_fit(stage: Mapping[str, Any]) -> list[str]:
    if stage["fits"]:
        return []
    if not stage["would_fit"]:
        return ["  no three changes of layout and recomputation let it fit; take more nodes or smaller packs"]
    lines = ["  it would fit with the fewest changes by one of:"]
    for change in stage["would_fit"]:
        lines.append(f"    {' '.join(change['words'])}  ({_weighed(change)})")
    return lines


def _weighed(change: Mapping[str, Any]) -> str:
    return f"{change['step_seconds']:.3g} s a step, {change['memory_peak'] / _GB:.1f} GB"


def _search(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{found['stage'] or 'run'}: {found['fitting']} of {found['candidates']} candidates fit"]
    for number, change in enumerate(found["ranked"], start=1):
        lines.append(f"  {number:3} {_weighed(change):28} {' '.join(change['words'])}")
    lines.append("  left out:")
    lines += [f"    {item['candidates']:6} {item['reason']}" for item in found["refused"]]
    return lines


def _rows(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [f"  {'row':28} {'measured':>10} {'predicted':>10} {'error':>8} {'span of what is not stated':>28}"]
    for row in rows:
        span = f"{row['low']:.3g} to {row['high']:.3g} s"
        marks = ("" if row["calibrated"] else " uncalibrated") + (
            f" assumed: {' '.join(row['assumed'])}" if row["assumed"] else ""
        )
        lines.append(
            f"  {row['name']:28} {row['measured']:8.3f} s {row['predicted']:8.3f} s {100 * row['error']:+6.1f} % "
            f"{span:>28}{marks}"
        )
    return lines


def _errors(name: str, errors: Mapping[str, Any]) -> str:
    middle, mean, largest = (f"{100 * errors[kind]:5.1f} %" for kind in ("median", "mean", "largest"))
    inside = f"within a quarter {100 * errors['within_quarter']:3.0f} % of {errors['rows']}"
    return f"  {name:26} median {middle}, mean {mean}, largest {largest}, {inside}"


def _fit(fit: Mapping[str, Any]) -> list[str]:
    words = " ".join(f"speeds.{name}={value:.4g}" for name, value in fit["constants"].items())
    lines = [f"constants: {words}", *_rows(fit["rows"]), _errors("as fitted", fit["errors"])]
    if fit["errors_left_out"] is not None:
        lines += ["each row left out of the fit:", *_rows(fit["left_out"]), _errors("left out", fit["errors_left_out"])]
    return lines


def _validation(validation: Mapping[str, Any]) -> list[str]:
    lines = _rows(validation["rows"])
    for group, errors in validation["errors"].items():
        lines.append(f"{group}:")
        lines += [_errors(name, values) for name, values in errors.items()]
    return lines


def _bar(share: float) -> str:
    return "#" * round(share * _BAR)
