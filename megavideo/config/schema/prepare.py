"""Settings of `megavideo ingest` and `megavideo encode`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megavideo.config.schema.clip_filters import CutsConfig, FiltersConfig
from megavideo.config.schema.clip_scores import ScoresConfig
from megavideo.config.schema.clip_store import ClipStoreConfig
from megavideo.config.schema.field import setting

GivenTask = Literal["image_to_video", "interpolation"]


@dataclass(frozen=True, kw_only=True)
class IngestRun:
    """All settings of `megavideo ingest`.

    `src` is a file or folder of video and images, or `s3://bucket/prefix`, whose objects are read one at a time as
    `store` says. `captions` is a JSONL of `file` and `caption` (default: `captions.jsonl` beside the clips, then
    sidecar `.txt` and `.json`). `out` receives `clips.jsonl`, `dropped.jsonl`, `report.json` and `report.html`, and
    under `parts` what was found in each input. `workers` is the number of processes (default: one a core, none of their
    own for a handful of inputs). `shard` is the share of the inputs that this process reads, `0/4` to `3/4` (default:
    the task's share of a SLURM job array, else all).
    """

    src: str = setting(remedy="VALUE is a clip, a folder of clips or s3://bucket/prefix")
    out: str = setting(remedy="VALUE is the folder that the list of clips is written to")
    captions: str | None = None
    workers: int | None = setting(None, minimum=1, maximum=1024)
    shard: str | None = None
    cuts: CutsConfig = field(default_factory=CutsConfig)
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    store: ClipStoreConfig = field(default_factory=ClipStoreConfig)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The video autoencoder (group `autoencoder`).

    `pca` is the built-in causal linear one, fitted to the clips (`channels`, `fit_clips`). The others load from `path`
    a folder that diffusers or `megavideo train-vae` saved, and work on squares of `tile` pixels where it is given.
    """

    kind: Literal["pca", "wan", "hunyuan_video", "cogvideox", "ltx"]
    path: str | None = None
    channels: int | None = setting(None, minimum=1)
    fit_clips: int | None = setting(None, minimum=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    tile: int | None = setting(None, minimum=32)


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The text encoder (group `text_encoder`).

    `bytes` is the built-in fixed one of width `dim`; `transformers` loads an encoder and tokenizer folder from `path`.
    Captions longer than `max_tokens` are cut, and counted. With `pad_to` zeros follow a caption's vectors up to that
    length, and models attend to them: Wan's were trained so, with 512. It is kept with the dataset, and sampling does
    the same.
    """

    kind: Literal["bytes", "transformers"]
    path: str | None = None
    dim: int | None = setting(None, minimum=8)
    max_tokens: int = setting(512, minimum=1)
    pad_to: int | None = setting(None, minimum=1)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """The encoder of first frames (`image_encoder`): the `CLIPVisionModel` in the folder `path`; none without.

    The folder is that of a pipeline of Wan 2.1 with `image_encoder` and `image_processor`, or holds both itself.
    """

    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class EncodeRun:
    """All settings of `megavideo encode`.

    `src` is a folder written by ingest, or one of raw clips or `s3://bucket/prefix`, which is then ingested first.
    Clips that lie in a store are read one at a time, as `store` says. Clips are scaled so that their area is at most
    `area` pixels at their own aspect ratio, never enlarged, and cut to at most `max_frames`. Videos keep their own
    rates, or are brought to `fps` frames a second: at each time the nearest frame is taken, and clips of which more
    than the share `max_doubled` would be repeats are dropped.

    `out` is a folder or an `s3://` prefix. What is done there with the same settings stays: a run that was stopped goes
    on, and new clips are added as a new version; weights may have moved to another `path` since. `overwrite` begins
    anew instead.

    `given_latents` are tasks for which models with `model.given_channels` will be trained: beside each clip's latent
    those of its first frame alone, or of its first and last (`interpolation`), are stored, with grey frames in place of
    the others. Each takes as many bytes as the clip's latent, and as long to encode. With `image_encoder.path` the
    embedding of the first frame is stored too, for models with `model.image_dim`: 257 x 1280 halves by Wan 2.1's.

    Clips are encoded in units of `unit_clips`, each by one of `workers` processes (default: one a GPU, else this one
    alone). `shard` is the share of the units that this task encodes, `0/4` to `3/4` (default: its share of a SLURM job
    array, else all). `retry_dropped` tries clips once more that could not be read in an earlier version.
    """

    src: str = setting(remedy="VALUE is a folder of clips, or one that ingest wrote, or s3://bucket/prefix")
    out: str = setting(remedy="VALUE is the folder or s3:// prefix that the dataset is written to")
    area: int = setting(minimum=256)
    max_frames: int = setting(minimum=1)
    fps: float | None = setting(None, minimum=0.01, maximum=1000.0)
    max_doubled: float = setting(0.5, minimum=0.0, maximum=1.0)
    patch: tuple[int, int, int] = (1, 2, 2)
    given_latents: tuple[GivenTask, ...] | None = None
    shard_bytes: int = setting(67108864, minimum=4096)
    unit_clips: int = setting(256, minimum=1)
    workers: int | None = setting(None, minimum=1, maximum=1024)
    shard: str | None = None
    retry_dropped: bool = False
    overwrite: bool = False
    store: ClipStoreConfig = field(default_factory=ClipStoreConfig)
    autoencoder: AutoencoderConfig
    text_encoder: TextEncoderConfig
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
