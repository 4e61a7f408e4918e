"""Settings of `megavideo caption`, and of the expansion of prompts in `megavideo sample`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A server that speaks OpenAI's chat completions.

    `url` is its base, as http://localhost:8000/v1, and `model` the name that it knows the model by. `key_variable`
    names the environment variable that holds the key; None sends none. A request that meets a busy or failing server is
    repeated up to `attempts` times, after `backoff_seconds`, then twice as long each time.
    """

    url: str | None = None
    model: str | None = None
    key_variable: str | None = None
    timeout_seconds: float = setting(120.0, above=0.0)
    attempts: int = setting(6, minimum=1)
    backoff_seconds: float = setting(1.0, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """Who writes new captions (group `captioner`).

    `vlm` describes each clip from `frames` of it, spread evenly, scaled so that no side is longer than `longest_side`
    pixels, and shown as so many images or as one video (`frames_as`). `expand` rewrites the caption that the clip has.
    The model is a folder of transformers at `path`, or behind `endpoint.url`. Each of `prompts` gives one caption,
    with the weight at its place in `weights`. `batch` clips are worked on at a time.
    """

    kind: Literal["vlm", "expand"]
    path: str | None = None
    endpoint: EndpointConfig = EndpointConfig()
    prompts: tuple[str, ...]
    weights: tuple[float, ...] = setting(above=0.0)
    frames: int | None = setting(None, minimum=1)
    frames_as: Literal["images", "video"] | None = None
    longest_side: int | None = setting(None, minimum=16)
    max_new_tokens: int = setting(256, minimum=1)
    batch: int = setting(4, minimum=1)


@dataclass(frozen=True, kw_only=True)
class ExpandConfig:
    """How short prompts become texts like the captions of training (group `expand`).

    `language_model` asks the model at `path`, a folder of transformers, or behind `endpoint.url`, with `prompt` above
    the user's words; `none` takes them as they are.
    """

    kind: Literal["none", "language_model"] = "none"
    path: str | None = None
    endpoint: EndpointConfig = EndpointConfig()
    prompt: str | None = None
    max_new_tokens: int = setting(256, minimum=1)


@dataclass(frozen=True, kw_only=True)
class CaptionRun:
    """All settings of `megavideo caption`.

    `src` is a folder written by ingest, or one of raw clips, which need no captions then. `captions` is a JSONL of
    captions that take the place of those of `src`. `out` receives `captions.jsonl`, which ingest takes as its
    `captions`; an interrupted run goes on where it stopped. Captions that a clip had are kept with the weight
    `given_weight` together, 0 leaves them out. `shard` is the share of the clips that this process works on, `0/4` to
    `3/4` (default: the task's share of a SLURM job array, else all).
    """

    src: str = setting(remedy="VALUE is a folder that `megavideo ingest` wrote, or a folder of clips")
    out: str = setting(remedy="VALUE is the folder that captions are written to")
    captions: str | None = None
    given_weight: float = setting(1.0, minimum=0.0)
    shard: str | None = None
    overwrite: bool = False
    captioner: CaptionerConfig
