"""A report as lines of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

MAX_ROWS = 20


def describe_fields(report: Any) -> str:
    """One line a field; lists are shown row by row up to twenty, then counted. `--json` shows all."""
    if report is None:
        return "done"
    values: Mapping[str, Any] = dataclasses.asdict(cast(Any, report)) if dataclasses.is_dataclass(report) else report
    width = max((len(name) for name in values), default=0)
    lines: list[str] = []
    for name, value in values.items():
        label = name.replace("_", " ").ljust(width)
        if isinstance(value, (list, tuple)) and value:
            lines.append(f"{label}  {len(value)}")
            lines += [f"  {one_line(row)}" for row in value[:MAX_ROWS]]
            lines += [f"  ... and {len(value) - MAX_ROWS} more"] if len(value) > MAX_ROWS else []
        else:
            lines.append(f"{label}  {one_line(value)}")
    return "\n".join(lines)


def one_line(value: Any) -> str:
    """A value as a user reads it: yes, no, none, numbers in six digits, lists and mappings item by item."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "  ".join(f"{key}={one_line(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(one_line(item) for item in value) or "none"
    return "none" if value is None else str(value)
