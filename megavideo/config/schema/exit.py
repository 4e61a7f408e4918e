"""Settings of when a stage ends before its last step (section `exit`)."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class ExitConfig:
    """What ends a run, or a stage of one, before `train.steps`: whichever is reached first.

    `samples` and `tokens` count what the stage trained on. `plateau` is how many validations in a row may fail to lower
    the loss by the share `plateau_share`.
    """

    samples: int | None = setting(None, minimum=1)
    tokens: int | None = setting(None, minimum=1)
    plateau: int | None = setting(None, minimum=1)
    plateau_share: float = setting(0.001, minimum=0.0, maximum=1.0)
