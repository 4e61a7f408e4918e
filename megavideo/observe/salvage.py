"""What can be read of files that a run is writing, or left damaged: whole rows, and no error for the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavideo.border.files import open_file, read_file, read_lines
from megavideo.border.refused import Refused
from megavideo.border.yaml_text import parse_yaml
from megavideo.observe.rows import Row, parse_row

_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Salvage:
    """Rows in order, and how many whole lines among them could not be read."""

    rows: list[Row]
    damaged: int


def salvage_rows(path: Path) -> Salvage:
    """All rows of a JSON Lines file that can be read; none where the file is missing or unreadable."""
    counter = DamageCounter()
    return Salvage(list(iterate_rows(path, counter)), counter.lines)


class DamageCounter:
    """Counts lines that could not be read while rows are passed on one at a time."""

    def __init__(self) -> None:
        self.lines = 0


def iterate_rows(path: Path, counter: DamageCounter) -> Iterator[Row]:
    """Yield the rows that can be read, one at a time; damaged lines are counted, a torn last one is not."""
    try:
        with open_file(path) as file:
            yield from _parse(read_lines(file), counter)
    except FileNotFoundError:
        return
    except (OSError, Refused):
        counter.lines += 1


def last_rows(path: Path, count: int) -> Salvage:
    """The last `count` rows, read from the end, so that the length of the file does not matter."""
    counter = DamageCounter()
    try:
        data = _tail(path, count)
    except FileNotFoundError:
        return Salvage([], 0)
    except (OSError, Refused):
        return Salvage([], 1)
    rows = list(_parse(data.splitlines(keepends=True), counter))
    return Salvage(rows[-count:], counter.lines)


def read_settings(path: Path) -> Mapping[str, Any] | None:
    """The settings of a run's config.yaml; None where they are missing or damaged."""
    try:
        values = parse_yaml(read_file(path))
    except (OSError, Refused):
        return None
    return values if isinstance(values, dict) else None


def _parse(lines: Any, counter: DamageCounter) -> Iterator[Row]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = parse_row(line)
        except ValueError:
            counter.lines += line.endswith(b"\n")
            continue
        yield row


def _tail(path: Path, count: int) -> bytes:
    """The end of the file, from the beginning of a line, with `count` whole lines or all there are."""
    with open_file(path) as file:
        end = file.seek(0, 2)
        start, data = end, b""
        while start > 0 and data.count(b"\n") <= count + 1:
            step = min(max(_BLOCK_BYTES, len(data)), start)
            start -= step
            file.seek(start)
            data = file.read(step) + data
    return data if start == 0 else data.partition(b"\n")[2]
