"""Settings of `megavideo fit`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megavideo.config.schema.field import setting
from megavideo.config.schema.model import ModelConfig

FitMethod = Literal["projection", "huber"]
FitResidual = Literal["log", "loss"]


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """What the columns of a table are called.

    `params`, `tokens` and `loss` must be there, and `flops` or `budget`, the training FLOPs of a run, or else columns
    `layers`, `width`, `ffn`, `clip_tokens` and `text_tokens`, from which they are counted. Rows of one `budget` make a
    parabola; without that column they are those whose FLOPs are alike. Rows that differ in `learning_rate` or
    `batch_tokens` alone give laws of these.
    """

    params: str = "params"
    tokens: str = "tokens"
    loss: str = "loss"
    flops: str = "flops"
    budget: str = "budget"
    learning_rate: str = "learning_rate"
    batch_tokens: str = "batch_tokens"


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """How a size becomes a shape: the width is a multiple of `head_dim`, and width / `aspect` the number of layers.

    The feed-forward is `ffn_ratio` times as wide, to the nearest multiple of 64.
    """

    aspect: float = setting(128.0, minimum=1.0)
    head_dim: int = setting(128, minimum=8)
    ffn_ratio: float = setting(4.0, minimum=0.5)


@dataclass(frozen=True, kw_only=True)
class FitRun:
    """Points to fit laws to, how, and what is asked of the laws.

    `points` is a table of comma-separated values or a folder of runs (null: the word of the command line). Of runs, the
    loss is the last of validation.jsonl, by `weights`, of all noise levels or of the nearest to `level`. `six_nd` is
    for tables of language models: C = 6 N D fills the one of FLOPs and tokens that is missing. The `drop_highest`
    points of highest loss are left out, and those from `flops_below` on.

    `law` is the one that is asked: by variable projection on squared errors, or by Huber's loss (turning linear at
    `delta`); both are fitted, on errors of the logarithm of the loss or of the `loss`. Intervals hold `confidence` by
    `resamples` of a bootstrap, drawn from `seed`.

    `budget` is the FLOPs whose best spending is asked (null: the largest of the points). For clips of `clip_tokens` and
    `text_tokens` a model is recommended by the rule of `shape`, whose other settings are those of `model`; `export`
    writes it as a file for configs/model. `out` is the page (null: beside the points).
    """

    points: str | None = None
    columns: ColumnsConfig = ColumnsConfig()
    six_nd: bool = False
    weights: Literal["raw", "ema"] = "raw"
    level: float | None = setting(None, minimum=0.0, maximum=1.0)
    drop_highest: int = setting(0, minimum=0)
    flops_below: float | None = setting(None, above=0.0)
    law: FitMethod = "projection"
    residual: FitResidual = "log"
    delta: float = setting(1e-3, above=0.0)
    resamples: int = setting(200, minimum=0)
    confidence: float = setting(0.8, above=0.0, maximum=0.999)
    seed: int = setting(0, minimum=0)
    budget: float | None = setting(None, above=0.0)
    clip_tokens: int | None = setting(None, minimum=1)
    text_tokens: int = setting(512, minimum=0)
    shape: ShapeConfig = ShapeConfig()
    model: ModelConfig = field()
    out: str | None = None
    export: str | None = None
