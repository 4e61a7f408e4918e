"""Tables as text: comma-separated values with a row of names."""

from __future__ import annotations

import csv
import io

from megavideo.border.names import shown
from megavideo.border.refused import Refused

_MOST_ROWS = 100_000


def parse_table(content: bytes) -> list[dict[str, str]]:
    """Rows by the names of their columns, all values as text without blanks around them.

    Lines that begin with `#` are left out. Raises Refused for what is no UTF-8, for a row with more or fewer values
    than there are names, and for a name that is there twice.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"is no UTF-8 text ({error.reason})") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        found = list(csv.reader(io.StringIO("\n".join(lines)), strict=True))
    except csv.Error as error:
        raise Refused(f"is no table of comma-separated values ({error})") from error
    if not found:
        raise Refused("is empty")
    names, rows = [name.strip() for name in found[0]], found[1:]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise Refused(f"has two columns {shown(twice[0])}")
    if len(rows) > _MOST_ROWS:
        raise Refused(f"has more than {_MOST_ROWS} rows")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise Refused(f"row {number} has {len(row)} values, and {len(names)} columns are named")
    return [dict(zip(names, (value.strip() for value in row), strict=True)) for row in rows]
