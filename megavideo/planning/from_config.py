"""A stage of a run on a cluster, as the workload that the step-time model takes; and what had to be assumed for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from megavideo.config.layout import Layout, parse_layout, ulysses_degree
from megavideo.config.schema.cluster import ClusterConfig
from megavideo.config.schema.plan import PlanRun
from megavideo.config.schema.precision import CPU_ATTENTION
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError
from megavideo.planning.activations import PackShape
from megavideo.planning.chips import chip_names, chip_of
from megavideo.planning.flops import BlockShape, forward_flops
from megavideo.planning.parameters import model_parameters
from megavideo.planning.step_time import Cluster
from megavideo.planning.workload import Scheme, Shape

_SPACE, _TIME = 8, 4  # pixels and frames to a latent cell, of Wan's autoencoder and most others
# what an FP8 product gains over bf16, of NVIDIA's linear layers on an H200
_FP8_GAIN = {"none": 1.0, "current": 1.58, "delayed": 1.69, "block": 1.40, "mxfp8": 1.58}
_GELU_SHARE = 0.005  # of a forward pass: a kernel bound by memory
_AUTO = {"a100": "fa2", "h100": "fa3", "h200": "fa3", "b200": "fa4", "gb200": "fa4", "gb300": "fa4"}


@dataclass(frozen=True)
class StageWork:
    """A stage as numbers. `assumed` tells what the settings do not say, and `changed` what the cluster made of them."""

    config: TrainRun
    layout: Layout
    shape: Shape
    scheme: Scheme
    cluster: Cluster
    pack: PackShape
    assumed: tuple[str, ...]
    changed: tuple[str, ...]


def cluster_of(config: ClusterConfig) -> Cluster:
    """The cluster's GPUs and links. Raises ConfigError where it has none, or does not say which."""
    if not config.gpus_per_node:
        raise ConfigError("cluster.gpus_per_node", 0, "has no GPUs to plan for", "take another cluster, as h100_ib")
    if config.chip is None:
        legal = ", ".join(chip_names())
        raise ConfigError(
            "cluster.chip", None, "does not say which GPUs there are", f"take cluster.chip= one of {legal}"
        )
    nic = None if config.nic_gbit is None else config.nic_gbit * 1e9 / 8
    return Cluster(chip_of(config.chip), config.gpus_per_node, nic)


def stage_work(config: TrainRun, plan: PlanRun) -> StageWork:
    """The work of one stage on the plan's cluster.

    Raises ConfigError where the layout does not fit the cluster's GPUs; a number of packs that does not is rounded up.
    """
    cluster = cluster_of(plan.cluster)
    gpus = plan.cluster.nodes * plan.cluster.gpus_per_node
    layout = _on_gpus(config, gpus)
    assumed: list[str] = []
    changed: list[str] = []
    dp = layout.dp or 1
    packs = -(-config.train.packs_per_step // dp) * dp
    if layout.pp_schedule == "dualpipev":
        packs = max(packs, 2 * layout.pp * dp)
    if packs != config.train.packs_per_step:
        changed.append(
            f"train.packs_per_step={packs} in place of {config.train.packs_per_step}, which dp={dp} does not divide"
        )
    config = replace(config, layout=layout.format(), train=replace(config.train, packs_per_step=packs))
    clip = _clip_tokens(config, plan, assumed)
    pack = _pack(config, clip)
    text = min(plan.caption_tokens, config.data.text_tokens_per_pack // max(1, config.data.tokens_per_pack // clip))
    assumed.append(f"captions of {text} tokens")
    attention = config.layers.attention
    if attention in ("auto", *CPU_ATTENTION):
        attention = _AUTO[cluster.chip.name]  # type: ignore[assignment]
        assumed.append(f"layers.attention=auto finds {attention}")
    if attention not in cluster.chip.attention:
        legal = ", ".join(cluster.chip.attention)
        raise ConfigError(
            "layers.attention", attention, f"does not run on {cluster.chip.label}", f"take one of {legal}"
        )
    if plan.cluster.nic_gbit is None:
        assumed.append(f"{cluster.chip.nic * 8 / 1e9:g} Gbit/s from each GPU to other nodes")
    if config.lora.rank is not None:
        assumed.append("activations of training with adapters are at most those of whole training")
    if not cluster.chip.calibrated:
        assumed.append(f"speeds of {cluster.chip.label} are scaled, and calibrated by no measured step")
    scheme = Scheme(
        segments=_segments(config.data.tokens_per_pack, clip, text),
        micro_steps=packs // dp,
        tp=layout.tp, sp=layout.sp, cp=layout.cp, ulysses=ulysses_degree(layout, config.model.heads), pp=layout.pp,
        dual=layout.pp_schedule == "dualpipev", dp=dp, sharding=_sharding(layout),
        recompute=recompute_share(config, clip, text), attention=str(attention), kernels=plan.kernels,
        # the engine reduces gradients after the passes, and gathers parameters of ZeRO 3 ahead of them
        overlap_tp=False, overlap_dp=layout.zero == 3, overlap_cp=True,
        gradient_bytes=2 if config.train.precision == "bf16" else 4, offload=layout.offload,
        product_gain=_FP8_GAIN[config.layers.fp8], trains_all=config.lora.rank is None,
    )  # fmt: skip
    return StageWork(config, layout, _shape(config), scheme, cluster, pack, tuple(assumed), tuple(changed))


def recompute_share(config: TrainRun, clip: int, text: int) -> float:
    """Share of a block's forward pass that is computed again, over all blocks, by FLOPs of what is recomputed.

    The last product of a part is not repeated with plain layers, but is by layers of tensor parallel.
    """
    recompute, model = config.train.recompute, config.model
    chosen = sum(recompute.chooses(number, model.layers) for number in range(model.layers)) / model.layers
    if recompute.kind == "none":
        return 0.0
    if recompute.kind == "full":
        return chosen
    d, f, s, t = model.width, model.ffn, clip, text
    last = 0 if parse_layout(config.layout).tp == 1 else 1
    whole = forward_flops(BlockShape(1, d, f), s, t)
    parts = {
        "self_attention": 2 * s * (3 + last) * d * d + 4 * s * s * d,
        "cross_attention": 2 * s * (1 + last) * d * d + 4 * d * d * t + 4 * s * t * d,
        "ffn": 2 * s * (1 + last) * d * f,
        "gelu": _GELU_SHARE * whole,
    }
    return chosen * sum(parts[name] for name in recompute.parts) / whole


def _on_gpus(config: TrainRun, gpus: int) -> Layout:
    layout = parse_layout(config.layout)
    dp = layout.dp if layout.dp is not None else max(1, gpus // layout.model_size)
    if dp * layout.model_size != gpus:
        rule = f"needs {dp * layout.model_size} GPUs, and the cluster has {gpus}"
        remedy = 'take another layout by words=["layout=..."], or another cluster.nodes'
        raise ConfigError("layout", config.layout, rule, remedy)
    return replace(layout, dp=dp)


def _clip_tokens(config: TrainRun, plan: PlanRun, assumed: list[str]) -> int:
    """Video tokens of a typical clip: as told, or by the areas and frames that the stage takes."""
    most = config.data.tokens_per_pack
    if plan.clip_tokens is not None:
        return min(plan.clip_tokens, most)
    if config.data.area is None and config.data.frames is None:
        assumed.append(f"one clip of {most} tokens fills a pack (clip_tokens=)")
        return most
    pt, ph, pw = config.model.patch
    low, high = config.data.area or (most, most)
    first, last = config.data.frames or (1, 1)
    frames = 1 + ((first + last) // 2 - 1) // _TIME / pt
    area = math.sqrt(low * high) / (_SPACE * ph * _SPACE * pw)
    clip = max(1, min(most, round(frames * area)))
    assumed.append(f"clips of {clip} tokens, by the stage's areas and frames (clip_tokens=)")
    return clip


def _pack(config: TrainRun, clip: int) -> PackShape:
    data = config.data
    segments = data.max_segments or max(1, -(-data.tokens_per_pack // clip))
    return PackShape(data.tokens_per_pack, data.text_tokens_per_pack, segments)


def _segments(tokens: int, clip: int, text: int) -> tuple[tuple[int, int], ...]:
    """Clips of one length fill a pack; the rest is a shorter one."""
    count, rest = divmod(tokens, clip)
    return ((clip, text),) * count + (((rest, text),) if rest else ())


def _shape(config: TrainRun) -> Shape:
    model = config.model
    parameters = model_parameters(model, lora=config.lora)
    return Shape(
        model.layers, model.width, model.ffn, model.heads,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.trained),
    )  # fmt: skip


def _sharding(layout: Layout) -> Any:
    return ("ddp", "zero1", "zero2", "zero3")[layout.zero]
