"""Standard output belongs to the report: while a verb runs, everything printed goes to standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, TextIO


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Send what libraries and child processes print to standard error, by Python's stream and by descriptor 1."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # Standard output is closed: there is nothing to keep clean.
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 1)
        os.close(saved)


def to_json(report: Mapping[str, Any]) -> str:
    """One JSON object on one line; numbers that JSON cannot hold (NaN, infinity) become null."""
    return json.dumps(_plain(report), allow_nan=False, ensure_ascii=False)


def set_up_logging(verbose: bool, leads: bool) -> None:
    """Log to standard error: megavideo's progress, and of other libraries warnings only.

    `leads` is false on ranks other than 0, which report warnings only. Repeated calls change the level and add nothing.
    """
    root = logging.getLogger()
    if not any(handler.get_name() == "megavideo-cli" for handler in root.handlers):
        handler = _StandardError()
        handler.set_name("megavideo-cli")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    level = logging.DEBUG if verbose else logging.INFO
    logging.getLogger("megavideo").setLevel(level if leads else logging.WARNING)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time, because callers of `main` may replace it between calls."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def leads(environment: Mapping[str, str]) -> bool:
    """Whether this process is rank 0, as torchrun (`RANK`) or srun (`SLURM_PROCID`) says; alone it leads."""
    return environment.get("RANK", environment.get("SLURM_PROCID", "0")).strip() in ("0", "")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value) if isinstance(value, PurePath) else _from_array(value)


def _from_array(value: Any) -> Any:
    """Numbers of numpy and torch know `item`; anything else is written as text."""
    return _plain(value.item()) if hasattr(value, "item") else str(value)
