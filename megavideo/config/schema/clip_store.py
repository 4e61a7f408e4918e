"""How clips are read that lie in a store."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class ClipStoreConfig:
    """How clips are read where `src` is `s3://bucket/prefix`; without effect for folders.

    Each process copies one clip at a time to the folder `cache` (default: where the system has its temporary files),
    and removes it after use. An object of more than `max_bytes` is dropped. A store that is out of reach is waited for
    `retry_seconds`.
    """

    cache: str | None = None
    max_bytes: int = setting(8 << 30, minimum=1)
    retry_seconds: float = setting(60.0, minimum=0.0)
