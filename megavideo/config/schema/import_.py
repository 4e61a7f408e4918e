"""Settings of `megavideo import`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class ImportRun:
    """The weights to import, and the run folder to make of them.

    `src` is a pipeline's folder of diffusers, its transformer's folder alone, a folder of the original Wan code, or one
    file. `out` is the folder that is made: `sample`, `train init_from=` and `checkpoint show` take it as they take a
    run. `expert` says which of two transformers is meant (Wan 2.2 A14B); the run is then one of the levels above or
    below `boundary`, which None takes from the pipeline. `heads` is needed where no config.json tells their number and
    the width of a head is not 128.
    """

    src: str = setting(remedy="VALUE is a folder of diffusers or of the original Wan code, or a .safetensors file")
    out: str = setting(remedy="VALUE is the folder to make")
    expert: Literal["high", "low"] | None = None
    boundary: float | None = setting(None, above=0.0, maximum=0.999)
    heads: int | None = setting(None, minimum=1)
