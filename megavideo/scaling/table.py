"""Points from a table of comma-separated values; `ColumnsConfig` says what its columns are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megavideo.border.csv_text import CsvTable, read_csv
from megavideo.border.fields import LARGEST
from megavideo.border.names import shown
from megavideo.border.refused import Refused
from megavideo.config.schema.fit import ColumnsConfig
from megavideo.errors import DataError
from megavideo.planning.flops import BlockShape, train_flops
from megavideo.scaling.points import Points, group_budgets

SHAPE_COLUMNS = ("layers", "width", "ffn", "clip_tokens", "text_tokens")
SIX_ND = "6 N D"


def read_table(path: Path, columns: ColumnsConfig, *, six_nd: bool) -> Points:
    """The points of a table.

    Raises DataError naming the file, the line and the column of what is missing or no number above zero.
    """
    try:
        table = _Table(path, read_csv(path))
    except (OSError, Refused) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as a table ({reason}). Remedy: give a CSV file in UTF-8") from error
    params, loss = table.column(columns.params), table.column(columns.loss)
    if six_nd:
        tokens, flops = _by_six_nd(table, columns, params)
        counted = SIX_ND
    else:
        tokens = table.column(columns.tokens)
        flops, counted = _flops(table, columns, tokens)
    budget = table.column(columns.budget) if table.has(columns.budget) else group_budgets(flops)
    return Points(
        str(path), counted, params, tokens, flops, budget, loss, _optional(table, columns.learning_rate),
        _optional(table, columns.batch_tokens),
    )  # fmt: skip


@dataclass(frozen=True)
class _Table:
    path: Path
    content: CsvTable

    def has(self, name: str) -> bool:
        return name in self.content.columns

    def column(self, name: str, *, whole: bool = False, zero: bool = False) -> np.ndarray:
        """The numbers of a column, float64 [P], above zero unless `zero` is allowed."""
        if not self.has(name):
            there = ", ".join(shown(column, 40) for column in self.content.columns[:20])
            raise DataError(
                f"{self.path}: has no column {shown(name)}, but {there}. Remedy: add it, or say which column it is, as "
                "columns.params=NAME"
            )
        place = self.content.columns.index(name)
        values = []
        for line, row in zip(self.content.lines, self.content.rows, strict=True):
            value = _number(row[place])
            if value is None or value < 0 or (value == 0 and not zero) or (whole and not value.is_integer()):
                kind = f"{'whole' if whole else 'finite'} number {'of at least' if zero else 'above'} zero"
                raise DataError(
                    f"{self.path}: line {line}, column {shown(name)}: {shown(row[place], 40)} is no {kind}. Remedy: "
                    "correct it, or remove the row"
                )
            values.append(value)
        return np.array(values, float)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= LARGEST else None


def _optional(table: _Table, name: str) -> np.ndarray | None:
    return table.column(name) if table.has(name) else None


def _by_six_nd(table: _Table, columns: ColumnsConfig, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and FLOPs where one of them may be missing."""
    name = columns.flops if table.has(columns.flops) else columns.budget
    if table.has(columns.tokens):
        tokens = table.column(columns.tokens)
        return tokens, 6 * params * tokens
    flops = table.column(name)
    return flops / (6 * params), flops


def _flops(table: _Table, columns: ColumnsConfig, tokens: np.ndarray) -> tuple[np.ndarray, str]:
    """Training FLOPs [P] and where they are from: a column, or counted from the shape of each model and its clips."""
    for name in (columns.flops, columns.budget):
        if table.has(name):
            return table.column(name), f"column {name}"
    if not all(table.has(name) for name in SHAPE_COLUMNS):
        raise DataError(
            f"{table.path}: has no column {shown(columns.flops)} of training FLOPs. Remedy: add it, or the columns "
            f"{', '.join(SHAPE_COLUMNS)}, from which they are counted; 6 N D is not taken for video, where attention "
            "may be half of the work (six_nd=true for language models)"
        )
    layers, width, ffn, clip = (table.column(name, whole=True) for name in SHAPE_COLUMNS[:-1])
    text = table.column(SHAPE_COLUMNS[-1], whole=True, zero=True)
    each = [
        train_flops(BlockShape(int(a), int(b), int(c)), [(int(s), int(t))]) / s
        for a, b, c, s, t in zip(layers, width, ffn, clip, text, strict=True)
    ]
    return tokens * np.array(each), "the FLOPs formula of megavideo"
