"""Settings of the latent stream and its packs (group `data`)."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the latents are and how they are packed.

    `uri` is a folder or `s3://` prefix written by `megavideo encode`. A pack holds exactly `tokens_per_pack` video
    tokens, at most `max_segments` samples and at most `text_tokens_per_pack` caption tokens. `cache` is where shards
    from a store are kept; it must be unset for a folder.
    """

    uri: str = setting(remedy="VALUE is the folder or s3:// prefix that `megavideo encode` wrote")
    tokens_per_pack: int = setting(minimum=1)
    max_segments: int = setting(64, minimum=1)
    text_tokens_per_pack: int = setting(minimum=1)
    cache: str | None = None
    prefetch_packs: int = setting(2, minimum=1)
