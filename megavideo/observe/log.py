"""Logging to standard error: each line names its rank where several processes run."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

LOGGER_NAME = "megavideo"


class StderrHandler(logging.StreamHandler):
    """Writes to whatever standard error is at the time, so that redirection of it is honoured."""

    def __init__(self) -> None:
        """Make the handler, without binding it to a stream."""
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The present standard error."""
        return sys.stderr


def configure_logging(rank: int = 0, world_size: int = 1, level: int = logging.INFO) -> None:
    """Send the log of all megavideo rooms to standard error; may be called again, as when the rank becomes known.

    Rank 0 logs from `level` on, the others only warnings and worse. A terminal gets rich's colours where rich is
    installed; files and pipes get plain lines with the time.
    """
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    prefix = f"[rank {rank}] " if world_size > 1 else ""
    rich_handler = _rich_handler(prefix) if sys.stderr.isatty() else None
    logger.addHandler(rich_handler or _plain_handler(prefix))
    logger.setLevel(level if rank == 0 else max(level, logging.WARNING))


def _plain_handler(prefix: str) -> logging.Handler:
    """Return a handler of plain lines: time, level unless it is info, message."""
    handler = StderrHandler()
    handler.setFormatter(_PlainFormatter(prefix))
    return handler


def _rich_handler(prefix: str) -> logging.Handler | None:
    """Return rich's handler, or None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.logging import RichHandler
    except ImportError:
        return None
    handler = RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
    handler.setFormatter(logging.Formatter(prefix + "%(message)s"))
    return handler


class _PlainFormatter(logging.Formatter):
    """`12:30:01 message`, with the level's name before the message where it is not info."""

    def __init__(self, prefix: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`, with its traceback where it has one."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{self.formatTime(record, self.datefmt)} {self._prefix}{level}{record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line
