"""Cross-field rules of the parallel layout: what each degree must divide, and which ways of training go together.

Whether the layout fits the number of started processes is known only at the start (`parallel/processes/mesh.py`).
"""

from __future__ import annotations

import math

from megavideo.config.layout import Layout, parse_layout, ulysses_degree
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError

FP8_MULTIPLE = 16  # dimensions of an FP8 matrix product (Transformer Engine)


def shape_divides_by_tp(cfg: TrainRun) -> None:
    """Tensor parallel deals out heads, and each stacked block of QKV, of width `width`, and of the feed-forward."""
    model, tp = cfg.model, parse_layout(cfg.layout).tp
    common = math.gcd(model.heads, model.width, model.ffn)
    legal = ", ".join(f"tp{degree}" for degree in range(1, common + 1) if common % degree == 0)
    for name, size in (("heads", model.heads), ("width", model.width), ("ffn", model.ffn)):
        if size % tp:
            rule = f"tp{tp} must divide model.{name}={size}"
            raise ConfigError("layout", cfg.layout, rule, f"take {legal}, or change model.{name}")


def heads_divide_by_ulysses(cfg: TrainRun) -> None:
    """The all-to-all of context parallel deals a tensor-parallel rank's heads out evenly."""
    ulysses_degree(parse_layout(cfg.layout), cfg.model.heads)


def tokens_divide_by_ranks(cfg: TrainRun) -> None:
    """Each rank of a context-parallel group takes an equal run of a pack, under sp each tensor-parallel one a part."""
    layout = parse_layout(cfg.layout)
    product = f"cp * tp = {layout.cp * layout.tp} (sp shares tokens over tp)" if layout.sp else f"cp = {layout.cp}"
    _check_tokens(cfg.data.tokens_per_pack, _token_ranks(layout), f"must divide by {product} of layout={cfg.layout!r}")


def check_fp8_alignment(tokens_per_pack: int, layout: Layout) -> None:
    """In FP8 a rank's tokens are a dimension of matrix products, which must divide by 16. Raises ConfigError."""
    ranks = _token_ranks(layout)
    rule = f"FP8 needs the tokens of each of {ranks} ranks to divide by {FP8_MULTIPLE}"
    _check_tokens(tokens_per_pack, ranks * FP8_MULTIPLE, rule)


def _token_ranks(layout: Layout) -> int:
    """Ranks among which the tokens of a pack are shared out."""
    return layout.cp * layout.tp if layout.sp else layout.cp


def _check_tokens(tokens: int, multiple: int, rule: str) -> None:
    below = tokens // multiple * multiple
    if below != tokens:
        near = [str(value) for value in (below, below + multiple) if value]
        remedy = f"take data.tokens_per_pack={' or '.join(near)}"
        raise ConfigError("data.tokens_per_pack", tokens, rule, remedy)


def layers_fill_stages(cfg: TrainRun) -> None:
    """Every stage of the pipeline holds at least one block; with DualPipeV a rank has two stages."""
    layout, layers = parse_layout(cfg.layout), cfg.model.layers
    per_rank = 2 if layout.pp_schedule == "dualpipev" else 1
    if layout.pp == 1 or layers >= layout.pp * per_rank:
        return
    most = layers // per_rank
    legal = f"take pp{most} or less" if most > 1 else "take no pp"
    if per_rank == 2 and layers >= layout.pp:
        legal += ", or drop dualpipev"
    rule = f"has {layout.pp * per_rank} stages, each of which needs a block, and model.layers={layers}"
    remedy = f"{legal}, or model.layers={layout.pp * per_rank} or more"
    raise ConfigError("layout", cfg.layout, rule, remedy)


def packs_divide_by_ranks(cfg: TrainRun) -> None:
    """Every data-parallel rank takes the same number of packs of a step."""
    dp = parse_layout(cfg.layout).dp
    if dp is not None and cfg.train.packs_per_step % dp:
        above = -(-cfg.train.packs_per_step // dp) * dp
        rule = f"must divide by dp={dp} of layout={cfg.layout!r}"
        raise ConfigError("train.packs_per_step", cfg.train.packs_per_step, rule, f"take train.packs_per_step={above}")


def packs_feed_dualpipev(cfg: TrainRun) -> None:
    """DualPipeV runs two pipelines against each other, and fills both from a rank's packs of one step.

    With dp left open, one data-parallel rank is supposed: more have fewer packs each.
    """
    layout = parse_layout(cfg.layout)
    dp = layout.dp or 1
    least = 2 * layout.pp * dp
    if layout.pp_schedule == "dualpipev" and cfg.train.packs_per_step < least:
        rule = f"dualpipev needs 2 * pp = {2 * layout.pp} packs or more on each of dp={dp} ranks"
        remedy = f"take train.packs_per_step={least} or more, or drop dualpipev"
        raise ConfigError("train.packs_per_step", cfg.train.packs_per_step, rule, remedy)


def pipeline_keeps_gradients(cfg: TrainRun) -> None:
    """A stage adds up the gradients of all packs of a step, which ZeRO-2 and 3 would scatter after each of them."""
    layout = parse_layout(cfg.layout)
    if layout.pp > 1 and layout.zero > 1:
        rule = f"pipeline parallel goes with zero0 and zero1, not zero{layout.zero}"
        raise ConfigError("layout", cfg.layout, rule, "take zero1 or zero0, or no pp")


def bf16_keeps_fp32_weights(cfg: TrainRun) -> None:
    """In bf16 the weights that the optimizer updates are fp32 copies, which only ZeRO's partitions hold."""
    if cfg.train.precision == "bf16" and parse_layout(cfg.layout).zero == 0:
        rule = "has no fp32 weights to update, which train.precision=bf16 needs"
        remedy = "take zero1 in place of zero0 (with one process it costs nothing), or train.precision=fp32"
        raise ConfigError("layout", cfg.layout, rule, remedy)


def muon_stays_on_the_device(cfg: TrainRun) -> None:
    """Offloaded momenta are in host memory, where no matrices are multiplied at a GPU's speed."""
    if cfg.optim.algorithm == "muon" and parse_layout(cfg.layout).offload:
        rule = "offload keeps the optimizer in host memory, where Muon would have to multiply matrices"
        remedy = "drop offload from the layout, or take AdamW: optim=constant"
        raise ConfigError("layout", cfg.layout, rule, remedy)


LAYOUT_RULES = (
    shape_divides_by_tp,
    heads_divide_by_ulysses,
    tokens_divide_by_ranks,
    layers_fill_stages,
    packs_divide_by_ranks,
    packs_feed_dualpipev,
    pipeline_keeps_gradients,
    bf16_keeps_fp32_weights,
    muon_stays_on_the_device,
)
