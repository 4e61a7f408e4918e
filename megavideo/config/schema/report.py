"""Settings of `megavideo report`."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class ReportRun:
    """The run folder whose page is written, and what the page shows.

    `run` null: the word of the command line. `out` is the file to write (null: report.html in the run folder).
    Samples of at most `sample_steps` steps, spread evenly over the run and always the last, are shown, of at most
    `prompts` prompts each; those of the last step move if their file has no more than `video_megabytes`.
    """

    run: str | None = None
    out: str | None = None
    sample_steps: int = setting(6, minimum=1)
    prompts: int = setting(6, minimum=1)
    video_megabytes: float = setting(4.0, minimum=0.0)
