"""Cross-field rules of `megavideo preflight`."""

from __future__ import annotations

from megavideo.config.schema.preflight import PreflightData, PreflightRun
from megavideo.errors import ConfigError


def store_has_settings(cfg: PreflightRun) -> None:
    """Without a store there is nothing to write or to wait for."""
    if cfg.data.uri is not None:
        return
    for name in ("write", "retry_seconds"):
        value = getattr(cfg.data, name)
        if value != getattr(PreflightData, name):
            raise ConfigError(f"data.{name}", value, "has no effect without a store", "add data.uri=URI, or drop it")


PREFLIGHT_RULES = (store_has_settings,)
