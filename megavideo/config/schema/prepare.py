"""Settings of `megavideo ingest` and `megavideo encode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class IngestRun:
    """All settings of `megavideo ingest`.

    `src` is a file or folder of video and images; `captions` is a JSONL of `file` and `caption` (default:
    `captions.jsonl` beside the clips, then sidecar `.txt` and `.json`). `out` receives `clips.jsonl` and `report.json`.
    """

    src: str = setting(remedy="VALUE is a clip or a folder of clips")
    out: str = setting(remedy="VALUE is the folder that the list of clips is written to")
    captions: str | None = None


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The video autoencoder (group `autoencoder`).

    `pca` is the built-in causal linear one, fitted to the clips (`channels`, `fit_clips`); `wan` loads a diffusers
    `AutoencoderKLWan` folder from `path`.
    """

    kind: Literal["pca", "wan"]
    path: str | None = None
    channels: int | None = setting(None, minimum=1)
    fit_clips: int | None = setting(None, minimum=1)
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The text encoder (group `text_encoder`).

    `bytes` is the built-in fixed one of width `dim`; `transformers` loads an encoder and tokenizer folder from `path`.
    Captions longer than `max_tokens` are cut, and counted.
    """

    kind: Literal["bytes", "transformers"]
    path: str | None = None
    dim: int | None = setting(None, minimum=8)
    max_tokens: int = setting(512, minimum=1)


@dataclass(frozen=True, kw_only=True)
class EncodeRun:
    """All settings of `megavideo encode`.

    `src` is a folder written by ingest, or one of raw clips, which is then ingested first. Clips are scaled so that
    their area is at most `area` pixels at their own aspect ratio, never enlarged, and cut to at most `max_frames`.
    `out` is a folder or an `s3://` prefix.
    """

    src: str = setting(remedy="VALUE is a folder of clips, or one that `megavideo ingest` wrote")
    out: str = setting(remedy="VALUE is the folder or s3:// prefix that the dataset is written to")
    area: int = setting(minimum=256)
    max_frames: int = setting(minimum=1)
    patch: tuple[int, int, int] = (1, 2, 2)
    shard_bytes: int = setting(67108864, minimum=4096)
    overwrite: bool = False
    autoencoder: AutoencoderConfig
    text_encoder: TextEncoderConfig
