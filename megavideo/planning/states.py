"""Bytes of weights, gradients and optimizer states that one rank holds, to the byte, as DeepSpeed lays them out.

ZeRO 1 and 2 make one flat tensor of each group of parameters, filled up to a multiple of twice the ranks of the data
axis (the engine's: dp x cp), and give each rank an equal part. ZeRO 3 divides each parameter by itself, rounded up, and
keeps small ones whole on every rank. Tests count what the engine holds under 20 layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from megavideo.config.layout import Layout, layout_parts
from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.planning.parameters import model_parameters

FP32, BF16 = 4, 2
REDUCE_BUCKET_ELEMENTS = 200_000_000  # of the engine's settings, to which a test holds it
PERSISTENT_ELEMENTS = (
    100_000  # ZeRO 3 keeps parameters of so many elements gathered (stage3_param_persistence_threshold)
)
LIVE_ELEMENTS = 1_000_000_000  # and so many others from forward to backward (stage3_max_live_parameters)
PREFETCH_ELEMENTS = 50_000_000  # and gathers so many ahead of their use (stage3_prefetch_bucket_size)


@dataclass(frozen=True)
class StateBytes:
    """What a rank holds between two updates, in bytes.

    `weights` are those the model computes with (and ZeRO 3's small ones whole besides their part), `accumulators` the
    gradients of a step as they grow over its micro-batches, `master` the fp32 weights that are updated, `optimizer` the
    moments, `ema` the average. `update` is the gradient partition that comes on top while an update is made, and
    `bucket` the buffer in which gradients are reduced. `live` are parameters that ZeRO 3 gathers for a pass, at most.
    With offload master, moments and average are in host memory, and `staging` is what there is besides.
    """

    weights: int
    accumulators: int
    master: int
    optimizer: int
    ema: int
    update: int
    bucket: int
    live: int = 0
    offloaded: bool = False
    staging: int = 0

    @property
    def updated(self) -> int:
        """What an update reads and writes besides gradients and weights: master, moments and average."""
        return self.master + self.optimizer + self.ema

    @property
    def on_device(self) -> int:
        """What stays on the device throughout a step."""
        return self.weights + self.accumulators + (0 if self.offloaded else self.updated)

    @property
    def on_host(self) -> int:
        """What offload keeps in host memory."""
        return self.updated + self.staging if self.offloaded else 0


@dataclass(frozen=True)
class _Group:
    """Elements of each parameter that a rank has of a group of the optimizer; `moments` are kept of each element."""

    numels: tuple[int, ...]
    moments: int

    @property
    def total(self) -> int:
        return sum(self.numels)


@dataclass(frozen=True)
class _Held:
    """What a rank has of the parameters: groups of trained ones, and frozen ones."""

    groups: tuple[_Group, ...]
    frozen: tuple[int, ...]


def state_bytes(config: TrainRun, layout: Layout, pp_rank: int = 0, data_rank: int = 0) -> StateBytes:
    """Of the rank at `pp_rank` and at `data_rank` of the engine's data axis; `layout.dp` must be given.

    The latter tells only for ZeRO 2 in fp32, where gradients stay whole for each parameter that a rank has a part of.
    """
    parts = layout_parts(config.model.layers, layout)
    own = [parts[pp_rank]]
    if layout.pp_schedule == "dualpipev":
        own.append(parts[2 * layout.pp - 1 - pp_rank])
    held = _held(config.model, tuple(own), config.lora, layout.tp, muon=config.optim.algorithm == "muon")
    element = BF16 if config.train.precision == "bf16" else FP32
    ranks = (layout.dp or 1) * layout.cp
    ema = config.optim.ema_decay is not None
    if layout.zero == 3:
        return _zero3(held, layout, element, ranks, ema=ema)
    whole, frozen = sum(group.total for group in held.groups), sum(held.frozen)
    if layout.zero == 0:
        return StateBytes(
            weights=element * (whole + frozen),
            accumulators=FP32 * whole,
            master=0,
            optimizer=FP32 * sum(group.moments * group.total for group in held.groups),
            ema=FP32 * whole * ema,
            update=0,
            bucket=0,
        )
    padded = [_padded(group.total, ranks) for group in held.groups]
    parts_of = [size // ranks for size in padded]
    part = sum(parts_of)
    reduced_in = FP32 if layout.zero == 1 else element  # stage 1 sums up in fp32, and reduces what it has summed up
    return StateBytes(
        weights=element * (sum(padded) + frozen),
        accumulators=_accumulators(held.groups, parts_of, layout, element, data_rank),
        master=FP32 * part,
        optimizer=FP32 * sum(group.moments * size for group, size in zip(held.groups, parts_of, strict=True)),
        ema=FP32 * part * ema,
        update=0 if layout.offload else FP32 * part,
        bucket=reduced_in * REDUCE_BUCKET_ELEMENTS,
        offloaded=layout.offload,
        staging=(FP32 + element) * part if layout.offload else 0,  # gradients, and new weights on their way back
    )


@lru_cache(maxsize=256)
def _held(model: ModelConfig, parts: tuple[range, ...], lora: LoraConfig, tp: int, *, muon: bool) -> _Held:
    """Trained parameters as the optimizer groups them: decayed and not, and of the former those of Muon apart."""
    parameters = [parameter for part in parts for parameter in model_parameters(model, part, lora)]
    trained = [parameter for parameter in parameters if parameter.trained]
    hidden = [p for p in trained if p.decays and p.hidden] if muon else []
    others = [p for p in trained if p.decays and not (muon and p.hidden)]
    plain = [p for p in trained if not p.decays]
    groups = [(hidden, 1), (others, 2), (plain, 2)]
    return _Held(
        groups=tuple(_Group(tuple(p.numel(tp) for p in group), moments) for group, moments in groups if group),
        frozen=tuple(p.numel(tp) for p in parameters if not p.trained),
    )


def _padded(total: int, ranks: int) -> int:
    return -(-total // (2 * ranks)) * 2 * ranks


def _accumulators(groups: Sequence[_Group], parts: Sequence[int], layout: Layout, element: int, data_rank: int) -> int:
    """Stage 1 keeps whole gradients in fp32, stage 2 in bf16 runs the rank's part, in fp32 ones whole parameters.

    The last are kept between the micro-steps of a step that has several.
    """
    if layout.zero == 1:
        return FP32 * sum(group.total for group in groups)
    if element == BF16:
        return FP32 * sum(parts)
    held = 0
    for group, part in zip(groups, parts, strict=True):
        begin, own = 0, (data_rank * part, (data_rank + 1) * part)
        for numel in group.numels:
            held += numel if begin < own[1] and begin + numel > own[0] else 0
            begin += numel
    return FP32 * held


def _zero3(held: _Held, layout: Layout, element: int, ranks: int, *, ema: bool) -> StateBytes:
    def part(numels: Sequence[int]) -> int:
        return sum(-(-numel // ranks) for numel in numels)

    parts = [part(group.numels) for group in held.groups]
    trained = sum(parts)
    numels = [*(numel for group in held.groups for numel in group.numels), *held.frozen]
    persistent = sum(numel for numel in numels if numel <= PERSISTENT_ELEMENTS)
    live = min(sum(numels) - persistent, LIVE_ELEMENTS + PREFETCH_ELEMENTS)
    return StateBytes(
        weights=element * (part(numels) + persistent),
        accumulators=FP32 * trained,
        master=FP32 * trained,
        optimizer=FP32 * sum(group.moments * size for group, size in zip(held.groups, parts, strict=True)),
        ema=FP32 * trained * ema,
        update=0 if layout.offload else FP32 * trained,
        bucket=element * REDUCE_BUCKET_ELEMENTS,
        live=element * live,
        offloaded=layout.offload,
        staging=FP32 * trained if layout.offload else 0,
    )
