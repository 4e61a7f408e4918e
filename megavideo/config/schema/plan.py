"""Settings of `megavideo plan`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megavideo.config.schema.cluster import ClusterConfig
from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class SpeedsConfig:
    """The free constants of the step-time model; null takes those fitted on the published rows.

    `products` and `attention` are shares of published speeds that a long run reaches, `elements` the bytes that kernels
    bound by memory move over those counted, `exposed` the share of overlapped communication that a step still sees.
    """

    products: float | None = setting(None, above=0.0, maximum=2.0)
    attention: float | None = setting(None, above=0.0, maximum=2.0)
    elements: float | None = setting(None, above=0.0)
    exposed: float | None = setting(None, minimum=0.0, maximum=1.0)


@dataclass(frozen=True, kw_only=True)
class PlanRun:
    """All settings of `megavideo plan`.

    `run`, `curriculum` and `stage` are words of `megavideo train`, and `words` further ones, as
    `["layout=tp2-sp-zero1"]`; without a stage every stage is planned. `clip_tokens` are the video tokens of a typical
    clip (null: by the areas and frames that a stage takes, else one clip fills the pack), `caption_tokens` the text
    tokens of one. `kernels` is how operators between matrix products run: eager as this engine does, or compiled.

    `node_gb_s` is what a node writes to its store in 1e9 bytes a second, and `gpu_hours_between_faults` the time
    between faults of one GPU. With `search`, layouts and recomputation that fit are ranked and the first `show` told.

    `calibrate` and `validate` are tables of measured steps: the first fits `speeds` on one, the second scores it.
    """

    cluster: ClusterConfig
    run: str | None = None
    curriculum: str = "none"
    stage: str | None = None
    words: tuple[str, ...] = ()
    clip_tokens: int | None = setting(None, minimum=1)
    caption_tokens: int = setting(512, minimum=1)
    kernels: Literal["eager", "compiled"] = "eager"
    speeds: SpeedsConfig = field(default_factory=SpeedsConfig)
    node_gb_s: float = setting(2.0, above=0.0)
    gpu_hours_between_faults: float = setting(50_000.0, above=0.0)
    search: bool = False
    show: int = setting(10, minimum=1)
    calibrate: str | None = None
    validate: str | None = None
