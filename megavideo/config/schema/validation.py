"""Settings of validation during training (group `validation`)."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is measured on clips that are not trained on, and which samples are drawn.

    Every `every` steps (null: never) the loss of `clips` held-out clips is measured at the middle of `levels` equal
    parts of the noise levels, with the same noise each time, by weights and average alike. The clips are those of the
    dataset at `uri`, or for null as many of the training data, which are then not trained on.

    Every `samples_every` steps (null: never) `prompts` are sampled from the average, `frames` x `height` x `width`, in
    `sample_steps` steps at `guidance`.
    """

    every: int | None = setting(None, minimum=1)
    uri: str | None = None
    clips: int = setting(16, minimum=1)
    levels: int = setting(8, minimum=1)
    samples_every: int | None = setting(None, minimum=1)
    prompts: tuple[str, ...] = ()
    sample_steps: int = setting(20, minimum=1)
    guidance: float = setting(5.0, minimum=0.0)
    frames: int = setting(17, minimum=1)
    height: int = setting(256, minimum=1)
    width: int = setting(256, minimum=1)
