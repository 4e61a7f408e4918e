"""Cross-field rules of the latent stream and its packs."""

from __future__ import annotations

from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def cache_belongs_to_store(cfg: TrainRun) -> None:
    """Shards in a folder are read in place; only those of a store are cached."""
    data = cfg.data
    for name in ("cache", "cache_gb"):
        value = getattr(data, name)
        if value is not None and "://" not in data.uri:
            rule = f"has no effect when data.uri={data.uri!r} is a folder"
            raise ConfigError(f"data.{name}", value, rule, f"add data.{name}=null, or name an s3:// prefix in data.uri")


def retries_belong_to_store(cfg: TrainRun) -> None:
    """A folder is there or not; only a store is waited for."""
    if all("://" not in uri for uri in (cfg.data.uri, cfg.validation.uri or "")):
        rule = f"has no effect when data.uri={cfg.data.uri!r} is a folder"
        refuse_set("data", cfg.data, ("retry_seconds",), rule, "name an s3:// prefix in data.uri, or drop it")


def uri_is_folder_or_s3(cfg: TrainRun) -> None:
    """Of the stores only S3 is spoken."""
    uri = cfg.data.uri
    if ("://" in uri or uri.startswith("s3:")) and not uri.startswith("s3://"):
        raise ConfigError("data.uri", uri, "must be a folder or an s3:// prefix", "take s3://BUCKET/PREFIX or a path")


def segments_fit_pack(cfg: TrainRun) -> None:
    """A segment holds at least one video token and one text token, so that more segments than those cannot occur."""
    data = cfg.data
    if data.max_segments is None:
        return
    for name in ("tokens_per_pack", "text_tokens_per_pack"):
        limit = getattr(data, name)
        if data.max_segments > limit:
            rule = f"a pack of data.{name}={limit} cannot hold so many"
            raise ConfigError("data.max_segments", data.max_segments, rule, f"take data.max_segments={limit} or less")


def sources_have_weights(cfg: TrainRun) -> None:
    """A source is seen more or less often, or not at all; never a negative number of times."""
    for name, weight in cfg.data.sources.items():
        if weight < 0:
            raise ConfigError(
                f"data.sources.{name}", weight, "must not be negative", "take 0 to leave such samples out, or more"
            )


def ranges_run_upward(cfg: TrainRun) -> None:
    """A range of pixels or frames holds something."""
    for name in ("area", "frames"):
        bounds = getattr(cfg.data, name)
        if bounds is not None and bounds[0] > bounds[1]:
            low, high = bounds
            rule = "is a range from least to most, and nothing lies in it"
            raise ConfigError(f"data.{name}", list(bounds), rule, f"take data.{name}=[{high},{low}]")


DATA_RULES = (
    uri_is_folder_or_s3,
    cache_belongs_to_store,
    retries_belong_to_store,
    segments_fit_pack,
    sources_have_weights,
    ranges_run_upward,
)
