"""Cross-field rules of checkpoints."""

from __future__ import annotations

from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def straight_needs_a_store(cfg: TrainRun) -> None:
    """Only where there is a store can the run folder be left out."""
    if not cfg.checkpoint.through_folder and cfg.checkpoint.uri is None:
        rule = "has no effect with checkpoint.uri=null: the run folder is all there is"
        raise ConfigError("checkpoint.through_folder", False, rule, "name a checkpoint.uri, or drop it")


def store_is_known(cfg: TrainRun) -> None:
    """Checkpoints go to a folder or to S3; told before a run has trained for hours."""
    scheme, found, _ = (cfg.checkpoint.uri or "").partition("://")
    if found and scheme not in ("s3", "file"):
        rule = f"storage {scheme!r} is not supported"
        raise ConfigError("checkpoint.uri", cfg.checkpoint.uri, rule, "give a folder or s3://bucket/prefix")


def kept_steps_are_saved(cfg: TrainRun) -> None:
    """`keep_every` picks among the steps that are saved."""
    every, keep_every = cfg.checkpoint.every, cfg.checkpoint.keep_every
    if keep_every is not None and keep_every % every:
        above = -(-keep_every // every) * every
        rule = f"must be a multiple of checkpoint.every={every}, or others are kept than it says"
        raise ConfigError("checkpoint.keep_every", keep_every, rule, f"take checkpoint.keep_every={above}")


def best_needs_validation(cfg: TrainRun) -> None:
    """The best checkpoints are those of lowest validation loss."""
    if cfg.checkpoint.keep_best and cfg.validation.every is None:
        rule = "has no effect with validation.every=null: no checkpoint has a validation loss"
        raise ConfigError("checkpoint.keep_best", cfg.checkpoint.keep_best, rule, "set validation.every, or drop it")


CHECKPOINT_RULES = (straight_needs_a_store, store_is_known, kept_steps_are_saved, best_needs_validation)
