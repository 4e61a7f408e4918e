"""Cross-field rules of `megavideo preflight`."""

from __future__ import annotations

from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.preflight import PreflightRun


def store_has_settings(cfg: PreflightRun) -> None:
    """Without a store there is nothing to write or to wait for."""
    if cfg.data.uri is None:
        remedy = "add data.uri=URI, or drop it"
        refuse_set("data", cfg.data, ("write", "retry_seconds"), "has no effect without a store", remedy)


PREFLIGHT_RULES = (store_has_settings,)
