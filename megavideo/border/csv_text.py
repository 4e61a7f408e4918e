"""Tables of comma-separated values from outside (RFC 4180), with their column names in the first row."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass

from megavideo.border.files import MB, read_file
from megavideo.border.names import shown
from megavideo.border.refused import Refused

_MOST_BYTES = 64 * MB
_MOST_COLUMNS = 1000
_MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class CsvTable:
    """Column names, rows of as many texts, and the line of the file on which each row ends, from 1."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def mappings(self) -> list[dict[str, str]]:
        """Rows by the names of their columns, values without blanks around them."""
        return [dict(zip(self.columns, (value.strip() for value in row), strict=True)) for row in self.rows]


def parse_csv(text: bytes) -> CsvTable:
    """The table of a UTF-8 text, without blank lines and those that begin with `#`.

    Raises Refused with the reason, and the line.
    """
    try:
        source = io.StringIO(text.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise Refused(f"it is no UTF-8 ({error.reason} at byte {error.start})") from error
    reader = csv.reader(source, strict=True)
    columns: tuple[str, ...] | None = None
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if not row or row[0].startswith("#"):
                continue
            if columns is None:
                columns = _names(row)
                continue
            if len(row) != len(columns):
                raise Refused(f"line {reader.line_num} has {len(row)} values for {len(columns)} columns")
            if len(rows) == _MOST_ROWS:
                raise Refused(f"it has more than {_MOST_ROWS} rows")
            rows.append(tuple(row))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise Refused(f"line {reader.line_num}: {error}") from error
    if columns is None:
        raise Refused("it is empty")
    return CsvTable(columns, tuple(rows), tuple(lines))


def read_csv(path: str | os.PathLike[str]) -> CsvTable:
    """The table of a regular file; raises as `parse_csv` and `read_file` do."""
    return parse_csv(read_file(path, _MOST_BYTES))


def _names(row: list[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in row)
    if len(names) > _MOST_COLUMNS:
        raise Refused(f"it has {len(names)} columns, and at most {_MOST_COLUMNS} are read")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Refused(f"column {shown(twice)} is there twice")
    return names
