"""Cross-field rules of recomputation, in training and in parity: each of its settings acts, and names what is there."""

from __future__ import annotations

from megavideo.config.schema.parity import ParityRun
from megavideo.config.schema.train import RECOMPUTE_PARTS, RecomputeConfig, TrainRun
from megavideo.errors import ConfigError

_LEGAL = ", ".join(RECOMPUTE_PARTS)


def _section(cfg: TrainRun | ParityRun) -> tuple[str, RecomputeConfig]:
    """The section's dotted path, and the section."""
    return ("recompute", cfg.recompute) if isinstance(cfg, ParityRun) else ("train.recompute", cfg.train.recompute)


def parts_belong_to_selective(cfg: TrainRun | ParityRun) -> None:
    """Parts are named where the kind is selective, and only there."""
    section, recompute = _section(cfg)
    if recompute.kind == "selective" and not recompute.parts:
        remedy = f"add {section}.parts=[...] with some of {_LEGAL}, or take {section}.kind=full"
        rule = f"must name at least one part, because {section}.kind=selective needs it"
        raise ConfigError(f"{section}.parts", [], rule, remedy)
    if recompute.kind != "selective" and recompute.parts:
        rule = f"has no effect with {section}.kind={recompute.kind}"
        raise ConfigError(f"{section}.parts", list(recompute.parts), rule, f"add {section}.kind=selective, or drop it")


def parts_are_known(cfg: TrainRun | ParityRun) -> None:
    """Parts are those of a block, each named once."""
    section, recompute = _section(cfg)
    parts = recompute.parts
    unknown = [part for part in parts if part not in RECOMPUTE_PARTS]
    if unknown:
        rule = f"holds {', '.join(map(repr, unknown))}, which is no part of a block"
        raise ConfigError(f"{section}.parts", list(parts), rule, f"take some of {_LEGAL}")
    if len(set(parts)) < len(parts):
        remedy = f"write {section}.parts=[{','.join(dict.fromkeys(parts))}]"
        raise ConfigError(f"{section}.parts", list(parts), "names a part twice", remedy)


def gelu_is_in_ffn(cfg: TrainRun | ParityRun) -> None:
    """A recomputed feed-forward recomputes its activation."""
    section, recompute = _section(cfg)
    parts = recompute.parts
    if {"gelu", "ffn"} <= set(parts):
        remedy = f"write {section}.parts=[{','.join(part for part in parts if part != 'gelu')}]"
        raise ConfigError(f"{section}.parts", list(parts), "gelu has no effect beside ffn, which holds it", remedy)


def layers_are_the_models(cfg: TrainRun | ParityRun) -> None:
    """No more blocks are recomputed than there are, and none where nothing is."""
    section, recompute = _section(cfg)
    layers = recompute.layers
    most, of_model = (
        (cfg.num_layers, "num_layers") if isinstance(cfg, ParityRun) else (cfg.model.layers, "model.layers")
    )
    if layers is None:
        return
    if recompute.kind == "none":
        remedy = f"add {section}.kind=full or {section}.kind=selective, or drop it"
        raise ConfigError(f"{section}.layers", layers, f"has no effect with {section}.kind=none", remedy)
    if layers > most:
        rule = f"must be <= {of_model}={most}"
        raise ConfigError(f"{section}.layers", layers, rule, "take fewer, or null for all")


def offload_needs_recompute(cfg: TrainRun | ParityRun) -> None:
    """Only inputs kept for recomputation are offloaded."""
    section, recompute = _section(cfg)
    if recompute.offload and recompute.kind == "none":
        remedy = f"add {section}.kind=full or {section}.kind=selective, or drop it"
        raise ConfigError(f"{section}.offload", True, f"has no effect with {section}.kind=none", remedy)


RECOMPUTE_RULES = (
    parts_belong_to_selective,
    parts_are_known,
    gelu_is_in_ffn,
    layers_are_the_models,
    offload_needs_recompute,
)
