"""Rules of the linear layers (group `layers`) that need no machine; the GPU is looked at when a run starts."""

from __future__ import annotations

from megavideo.config.layout import parse_layout
from megavideo.config.rules.layout import FP8_MULTIPLE, check_fp8_alignment
from megavideo.config.schema.precision import ALWAYS_BF16, CPU_ATTENTION, LayersConfig
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError

HEAD_MULTIPLE = 8  # of the width of a head, for the attention kernels of GPUs
_LAYERS_OF_BLOCK = (
    "self_attention.qkv",
    "self_attention.out",
    "cross_attention.q",
    "cross_attention.kv",
    "cross_attention.out",
    "ffn.up",
    "ffn.down",
)


def fp8_candidates(num_blocks: int) -> tuple[str, ...]:
    """Dotted names of the linear layers that can run in FP8: the column and row layers of the blocks."""
    return tuple(f"blocks.{i}.{name}" for i in range(num_blocks) for name in _LAYERS_OF_BLOCK)


def fp8_needs_te(cfg: TrainRun) -> None:
    """Only Transformer Engine trains in FP8."""
    if cfg.layers.fp8 != "none" and cfg.layers.engine != "te":
        rule = f"needs layers.engine=te, not {cfg.layers.engine}"
        raise ConfigError("layers.fp8", cfg.layers.fp8, rule, "take layers=te_fp8, or layers.fp8=none")


def fp8_needs_bf16(cfg: TrainRun) -> None:
    """Between the FP8 products a run is in bf16."""
    if cfg.layers.fp8 != "none" and cfg.train.precision != "bf16":
        rule = f"needs train.precision=bf16, not {cfg.train.precision}"
        raise ConfigError("layers.fp8", cfg.layers.fp8, rule, "add train.precision=bf16, or take layers.fp8=none")


def exclusion_names_layers(cfg: TrainRun) -> None:
    """Layers held whole stay in bf16, and each further name is that of a layer."""
    layers = cfg.layers
    given = list(layers.fp8_exclude)
    if layers.fp8 == "none":
        if layers.fp8_exclude != LayersConfig().fp8_exclude:
            remedy = "drop it, or take layers=te_fp8"
            raise ConfigError("layers.fp8_exclude", given, "has no effect with layers.fp8=none", remedy)
        return
    if missing := [name for name in ALWAYS_BF16 if name not in given]:
        rule = f"must hold {', '.join(ALWAYS_BF16)}, which see rows whose number does not divide by {FP8_MULTIPLE}"
        remedy = f"write layers.fp8_exclude=[{','.join([*missing, *given])}]"
        raise ConfigError("layers.fp8_exclude", given, rule, remedy)
    names = [f".{name}." for name in fp8_candidates(cfg.model.layers)]
    for part in given:
        if part not in ALWAYS_BF16 and not any(f".{part}." in name for name in names):
            remedy = f"take parts of names as blocks.{cfg.model.layers - 1} or {', '.join(_LAYERS_OF_BLOCK)}"
            raise ConfigError("layers.fp8_exclude", part, "is part of no layer's name", remedy)


def delayed_scales_see_each_pass_once(cfg: TrainRun) -> None:
    """Delayed scaling keeps a history of magnitudes, which a recomputed forward pass would enter twice."""
    kind = cfg.train.recompute.kind
    if cfg.layers.fp8 == "delayed" and kind != "none":
        rule = f"keeps a history that train.recompute.kind={kind} would enter twice"
        raise ConfigError("layers.fp8", "delayed", rule, "take layers.fp8=current, or train.recompute.kind=none")


def fp8_sizes_divide(cfg: TrainRun) -> None:
    """Every dimension of an FP8 product divides by 16: features of a rank, its tokens, and those of the text."""
    if cfg.layers.fp8 == "none":
        return
    layout = parse_layout(cfg.layout)
    for name, size in (("width", cfg.model.width), ("ffn", cfg.model.ffn)):
        if size % (layout.tp * FP8_MULTIPLE):
            rule = f"FP8 needs it to divide by {FP8_MULTIPLE} on each of {layout.tp} tensor-parallel ranks"
            legal = -(-size // (layout.tp * FP8_MULTIPLE)) * layout.tp * FP8_MULTIPLE
            raise ConfigError(f"model.{name}", size, rule, f"take model.{name}={legal}, or layers.fp8=none")
    check_fp8_alignment(cfg.data.tokens_per_pack, layout)
    text, multiple = cfg.data.text_tokens_per_pack, FP8_MULTIPLE * layout.cp
    if text % multiple:
        legal = -(-text // multiple) * multiple
        rule = f"FP8 needs the share of each of {layout.cp} context-parallel ranks to divide by {FP8_MULTIPLE}"
        raise ConfigError("data.text_tokens_per_pack", text, rule, f"take data.text_tokens_per_pack={legal}")


def attention_fits_the_run(cfg: TrainRun) -> None:
    """A named kernel of GPUs takes bf16 and heads whose width divides by 8, one of CPUs no layers of GPUs."""
    name, head_dim = cfg.layers.attention, cfg.model.head_dim
    if name == "auto":
        return
    if name in CPU_ATTENTION:
        if cfg.layers.engine == "te":
            rule = "computes on a CPU, and layers.engine=te on a GPU"
            raise ConfigError("layers.attention", name, rule, "take layers.attention=auto, or layers=local")
        return
    if cfg.train.precision != "bf16":
        rule = f"needs train.precision=bf16, not {cfg.train.precision}"
        raise ConfigError("layers.attention", name, rule, "add train.precision=bf16, or take layers.attention=auto")
    if head_dim % HEAD_MULTIPLE:
        rule = f"needs heads whose width divides by {HEAD_MULTIPLE}, and model.heads={cfg.model.heads} gives {head_dim}"
        raise ConfigError("layers.attention", name, rule, "change model.heads or model.width")


PRECISION_RULES = (
    attention_fits_the_run,
    fp8_needs_te,
    fp8_needs_bf16,
    exclusion_names_layers,
    delayed_scales_see_each_pass_once,
    fp8_sizes_divide,
)
