"""Cross-field rules of recomputation: each of its settings acts, and names what is there."""

from __future__ import annotations

from megavideo.config.schema.train import RECOMPUTE_PARTS, TrainRun
from megavideo.errors import ConfigError

_KIND = "train.recompute.kind"
_PARTS = "train.recompute.parts"
_LEGAL = ", ".join(RECOMPUTE_PARTS)


def parts_belong_to_selective(cfg: TrainRun) -> None:
    """Parts are named where the kind is selective, and only there."""
    recompute = cfg.train.recompute
    if recompute.kind == "selective" and not recompute.parts:
        remedy = f"add {_PARTS}=[...] with some of {_LEGAL}, or take {_KIND}=full"
        rule = f"must name at least one part, because {_KIND}=selective needs it"
        raise ConfigError(_PARTS, [], rule, remedy)
    if recompute.kind != "selective" and recompute.parts:
        rule = f"has no effect with {_KIND}={recompute.kind}"
        raise ConfigError(_PARTS, list(recompute.parts), rule, f"add {_KIND}=selective, or drop it")


def parts_are_known(cfg: TrainRun) -> None:
    """Parts are those of a block, each named once."""
    parts = cfg.train.recompute.parts
    unknown = [part for part in parts if part not in RECOMPUTE_PARTS]
    if unknown:
        rule = f"holds {', '.join(map(repr, unknown))}, which is no part of a block"
        raise ConfigError(_PARTS, list(parts), rule, f"take some of {_LEGAL}")
    if len(set(parts)) < len(parts):
        remedy = f"write {_PARTS}=[{','.join(dict.fromkeys(parts))}]"
        raise ConfigError(_PARTS, list(parts), "names a part twice", remedy)


def gelu_is_in_ffn(cfg: TrainRun) -> None:
    """A recomputed feed-forward recomputes its activation."""
    parts = cfg.train.recompute.parts
    if {"gelu", "ffn"} <= set(parts):
        remedy = f"write {_PARTS}=[{','.join(part for part in parts if part != 'gelu')}]"
        raise ConfigError(_PARTS, list(parts), "gelu has no effect beside ffn, which holds it", remedy)


def layers_are_the_models(cfg: TrainRun) -> None:
    """No more blocks are recomputed than there are, and none where nothing is."""
    recompute, layers = cfg.train.recompute, cfg.train.recompute.layers
    if layers is None:
        return
    if recompute.kind == "none":
        remedy = f"add {_KIND}=full or {_KIND}=selective, or drop it"
        raise ConfigError("train.recompute.layers", layers, f"has no effect with {_KIND}=none", remedy)
    if layers > cfg.model.layers:
        rule = f"must be <= model.layers={cfg.model.layers}"
        raise ConfigError("train.recompute.layers", layers, rule, "take fewer, or null for all")


def offload_needs_recompute(cfg: TrainRun) -> None:
    """Only inputs kept for recomputation are offloaded."""
    if cfg.train.recompute.offload and cfg.train.recompute.kind == "none":
        remedy = f"add {_KIND}=full or {_KIND}=selective, or drop it"
        raise ConfigError("train.recompute.offload", True, f"has no effect with {_KIND}=none", remedy)


RECOMPUTE_RULES = (
    parts_belong_to_selective,
    parts_are_known,
    gelu_is_in_ffn,
    layers_are_the_models,
    offload_needs_recompute,
)
