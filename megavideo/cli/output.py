"""Standard output belongs to the report: while a verb runs, everything printed goes to standard error."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from megavideo.border.secrets import HidingStream, Secrets
from megavideo.errors import MegavideoError


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Send what libraries and child processes print to standard error, by Python's stream and by descriptor 1."""
    if sys.stdout is None:  # it was closed at the start: there is nothing to keep clean
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 1)
        os.close(saved)


def hide_secrets(words: Sequence[str]) -> None:
    """Have no secret pass standard output and error, logs and tracebacks included, from now on.

    `words` are those of the command line, which may hold some, as the environment may.
    """
    secrets = Secrets.of(os.environ, words)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, HidingStream(stream, secrets))


@contextlib.contextmanager
def secrets_hidden(words: Sequence[str]) -> Iterator[None]:
    """The same for as long as the block lasts."""
    streams = sys.stdout, sys.stderr
    hide_secrets(words)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def tell(text: str) -> None:
    """Print `text` on standard output; a reader that has gone, as `head` has, wants no more of it.

    Raises MegavideoError where it cannot be written, as on a full disk.
    """
    try:
        print(text)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is held back would be written again at the end
        if not isinstance(error, BrokenPipeError):
            remedy = "Remedy: send it to a place that can be written"
            raise MegavideoError(f"standard output: cannot be written ({error.strerror}). {remedy}") from error


def to_json(report: Mapping[str, Any]) -> str:
    """One JSON object on one line; numbers that JSON cannot hold (NaN, infinity) become null."""
    return json.dumps(_plain(report), allow_nan=False, ensure_ascii=False)


def launched_as(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, number of processes), as torchrun (`RANK`, `WORLD_SIZE`) or srun (`SLURM_...`) says; (0, 1) alone."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in environment:
            return _number(environment[rank], 0), _number(environment.get(size, ""), 1)
    return 0, 1


def leads(environment: Mapping[str, str]) -> bool:
    """Whether this process is rank 0; alone it leads."""
    return launched_as(environment)[0] == 0


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.strip().isdecimal() else otherwise


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
