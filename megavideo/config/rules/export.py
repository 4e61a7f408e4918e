"""Cross-field rules of `megavideo export` that need not the checkpoint."""

from __future__ import annotations

from pathlib import PurePath

from megavideo.config.schema.export import CompareConfig, ExportRun, PartsConfig
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
    for name in ("vae", "text_encoder", "tokenizer", "image_encoder"):
        how = getattr(cfg.parts, name)
        if how != getattr(PartsConfig, name):
            raise ConfigError(f"parts.{name}", how, f"has no effect with format={cfg.format}", remedy)


def experts_are_of_a_pipeline(cfg: ExportRun) -> None:
    """Two experts have a boundary between them, and only a pipeline holds both."""
    if cfg.low_ckpt is None:
        if cfg.boundary is not None:
            rule = "has no effect without low_ckpt"
            raise ConfigError("boundary", cfg.boundary, rule, "add low_ckpt=RUN, or drop it")
        return
    if cfg.format != "pipeline":
        rule = f"format={cfg.format} holds one transformer"
        raise ConfigError("low_ckpt", cfg.low_ckpt, rule, "take format=pipeline, or export each expert by itself")
    if cfg.boundary is None:
        remedy = "add boundary=0.875, or where the experts' ranges meet"
        raise ConfigError("boundary", None, "low_ckpt needs it", remedy)
    if cfg.quantization != "none":
        rule = "the report on what is lost is of one network"
        raise ConfigError("quantization", cfg.quantization, rule, "export each expert by itself, format=transformer")


def formats_with_scales(cfg: ExportRun) -> None:
    """What reads a folder in the original names, the original code, knows no scales."""
    if cfg.quantization != "none" and cfg.format == "wan":
        rule = "a folder with format=wan is for the original code, which reads no scales beside its tensors"
        remedy = "take format=single, which has the same names, or format=transformer or pipeline"
        raise ConfigError("quantization", cfg.quantization, rule, remedy)


def only_quantised_are_compared(cfg: ExportRun) -> None:
    """A video of both is sampled where there is a difference, and where `verify` lets the model be loaded."""
    if cfg.compare == CompareConfig() or (cfg.quantization != "none" and cfg.verify):
        return
    lacks = "quantization=none" if cfg.quantization == "none" else "verify=false"
    for name in ("steps", "prompt", "frames", "height", "width"):
        value = getattr(cfg.compare, name)
        if value != getattr(CompareConfig, name):
            raise ConfigError(f"compare.{name}", value, f"has no effect with {lacks}", "drop it")


EXPORT_RULES = (
    out_fits_the_format,
    one_file_has_no_shards,
    only_pipelines_have_parts,
    experts_are_of_a_pipeline,
    formats_with_scales,
    only_quantised_are_compared,
)
