"""Settings of `megavideo demo`."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """All settings of `megavideo demo`.

    A corpus of `clips` videos and `images` pictures of moving shapes is rendered into `out`, and the preset
    `run=demo` is trained on it for `steps` steps by `processes` processes. Each held-out prompt is then sampled at
    `frames` x `height` x `width` with `sampling_steps` steps and `guidance`.
    """

    out: str
    clips: int = setting(minimum=24)
    images: int = setting(minimum=0)
    seed: int = setting(0, minimum=0)
    processes: int = setting(2, minimum=1, maximum=2, remedy="a step of run=demo has two packs to share")
    steps: int = setting(minimum=1)
    sampling_steps: int = setting(minimum=1)
    guidance: float = setting(minimum=0.0)
    frames: int = setting(minimum=1)
    height: int = setting(minimum=16)
    width: int = setting(minimum=16)
