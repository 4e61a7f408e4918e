"""Cross-field rules of `megavideo export` that need not the checkpoint."""

from __future__ import annotations

from pathlib import PurePath

from megavideo.config.schema.export import ExportRun, PartsConfig
from megavideo.errors import ConfigError

SUFFIX = ".safetensors"


def out_fits_the_format(cfg: ExportRun) -> None:
    """One file, or a folder; on the local disk."""
    if "://" in cfg.out:
        raise ConfigError("out", cfg.out, "must be a path, not an address", "export to a folder, and copy it there")
    is_file = PurePath(cfg.out).suffix == SUFFIX
    if cfg.format == "single" and not is_file:
        raise ConfigError("out", cfg.out, "format=single is one file", f"take out={cfg.out.rstrip('/')}{SUFFIX}")
    if cfg.format != "single" and is_file:
        remedy = f"take out={cfg.out.removesuffix(SUFFIX)}, or format=single"
        raise ConfigError("out", cfg.out, f"format={cfg.format} is a folder", remedy)


def one_file_has_no_shards(cfg: ExportRun) -> None:
    """`single` says all about the number of files."""
    if cfg.format == "single" and cfg.shard_gb != ExportRun.shard_gb:
        raise ConfigError("shard_gb", cfg.shard_gb, "has no effect with format=single", "drop it, or take format=wan")


def only_pipelines_have_parts(cfg: ExportRun) -> None:
    """Scheduler and pretrained parts belong to a pipeline."""
    if cfg.format == "pipeline":
        return
    remedy = "drop it, or take format=pipeline"
    if cfg.shift is not None:
        raise ConfigError("shift", cfg.shift, f"has no effect with format={cfg.format}", remedy)
    for name in ("vae", "text_encoder", "tokenizer"):
        how = getattr(cfg.parts, name)
        if how != getattr(PartsConfig, name):
            raise ConfigError(f"parts.{name}", how, f"has no effect with format={cfg.format}", remedy)


EXPORT_RULES = (out_fits_the_format, one_file_has_no_shards, only_pipelines_have_parts)
