"""Settings of checkpoints (group `checkpoint`)."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved, where to, and which checkpoints are kept.

    One is written every `every` steps and at the end of a stage. With `asynchronous` training goes on while the files
    are written. `uri` null keeps them in the run folder; a folder or `s3://` prefix with `through_folder` receives a
    copy of each after it is whole in the run folder, and without is written straight. Kept are the last `keep_last`,
    those whose step divides by `keep_every`, the `keep_best` of lowest validation loss, and the ends of stages unless
    `keep_stage_ends` is false; a checkpoint is kept if any of these says so.
    """

    every: int = setting(500, minimum=1)
    asynchronous: bool = True
    uri: str | None = None
    through_folder: bool = True
    keep_last: int = setting(2, minimum=1)
    keep_every: int | None = setting(None, minimum=1)
    keep_best: int = setting(0, minimum=0)
    keep_stage_ends: bool = True
