"""Settings of the latent stream and its packs (group `data`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the latents are and how they are packed.

    `uri` is a folder or `s3://` prefix written by `megavideo encode`, and `version` one of its versions (null: the
    newest when the run is started, and the same one whenever it goes on). A pack holds exactly `tokens_per_pack` video
    tokens, at most `text_tokens_per_pack` caption tokens and at most `max_segments` samples (null: as many as the data
    asks for). `sources` says how often samples are seen beside those that it does not name, which are seen once an
    epoch: its names are `image`, `video`, or patterns as in `films/*` over the manifest's source; the first that fits
    counts, and 0 leaves out; all others are at most a thousand times apart.

    `area` (height times width) and `frames` are ranges of pixels and pixel frames, both ends included; samples outside
    are not trained on.

    `cache` is where shards from a store are kept, `cache_gb` (1e9 bytes) of them at most or else what its disk holds;
    both must be unset for a folder. `workers` processes of each rank fetch and check shards ahead of their use; with 0
    a thread of it does. An outage of the store is waited for `retry_seconds`.
    """

    uri: str = setting(remedy="VALUE is the folder or s3:// prefix that `megavideo encode` wrote")
    version: int | None = setting(None, minimum=1)
    tokens_per_pack: int = setting(minimum=1)
    max_segments: int | None = setting(None, minimum=1)
    text_tokens_per_pack: int = setting(minimum=1)
    sources: dict[str, float] = field(default_factory=dict)
    area: tuple[int, int] | None = setting(None, minimum=1)
    frames: tuple[int, int] | None = setting(None, minimum=1)
    cache: str | None = None
    prefetch_packs: int = setting(2, minimum=1)
    workers: int = setting(0, minimum=0, maximum=16)
    cache_gb: float | None = setting(None, above=0.0)
    retry_seconds: float = setting(20.0, minimum=0.0)
