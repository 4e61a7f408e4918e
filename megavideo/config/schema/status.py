"""Settings of `megavideo status`."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class StatusRun:
    """Which runs are looked at, and how.

    `run` is a run folder or a folder of them (null: the words of the command line). Losses are means over `window`
    steps, compared with as many before. With `watch` it looks again every so many seconds until no run is at work.
    """

    run: str | None = None
    window: int = setting(100, minimum=2)
    watch: float | None = setting(None, minimum=0.1)
