"""Settings of `megavideo lora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class LoraVerbRun:
    """What `megavideo lora` writes, into the folder `out`.

    `export` writes adapters as diffusers loads them, `weights` their averages or as they are. `base` is the run or
    checkpoint with the weights that adapters of a file are for (`load`), or where those of a run lie now (`merge`).
    """

    out: str = setting(remedy="VALUE is a folder that receives the adapters, or the run folder made of them")
    base: str | None = None
    weights: Literal["ema", "raw"] = "ema"
