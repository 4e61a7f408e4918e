"""Bytes of weights, gradients and optimizer states that one rank holds, to the byte, as DeepSpeed lays them out.

ZeRO 1 and 2 make one flat tensor of each group of parameters, filled up to a multiple of twice the ranks of the data
axis (the engine's: dp x cp), and give each rank an equal part. ZeRO 3 divides each parameter by itself, rounded up, and
keeps small ones whole on every rank. Tests count what the engine holds under 20 layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megavideo.config.layout import Layout, layout_parts
from megavideo.config.schema.train import TrainRun
from megavideo.planning.parameters import Parameter, model_parameters

FP32, BF16 = 4, 2
REDUCE_BUCKET_ELEMENTS = 200_000_000  # of the engine's settings, to which a test holds it
PERSISTENT_ELEMENTS = 100_000  # ZeRO 3 keeps parameters of so many elements gathered (stage3_param_persistence_threshold)
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


def rank_parameters(config: TrainRun, layout: Layout, pp_rank: int = 0) -> tuple[tuple[Parameter, ...], ...]:
    """Parameters of each pipeline stage that a rank holds; a DualPipeV rank holds two."""
    parts = layout_parts(config.model.layers, layout)
    own = [parts[pp_rank]]
    if layout.pp_schedule == "dualpipev":
        own.append(parts[2 * layout.pp - 1 - pp_rank])
    return tuple(model_parameters(config.model, part, config.lora) for part in own)


def state_bytes(config: TrainRun, layout: Layout, pp_rank: int = 0, data_rank: int = 0) -> StateBytes:
    """Of the rank at `pp_rank` and at `data_rank` of the engine's data axis; `layout.dp` must be given.

    The latter tells only for ZeRO 2 in fp32, where gradients stay whole for each parameter that a rank has a part of.
    """
    parameters = [parameter for stage in rank_parameters(config, layout, pp_rank) for parameter in stage]
    element = BF16 if config.train.precision == "bf16" else FP32
    ranks = (layout.dp or 1) * layout.cp
    groups = _groups(parameters, muon=config.optim.algorithm == "muon")
    frozen = sum(p.numel(layout.tp) for p in parameters if not p.trained)
    if layout.zero == 3:
        return _zero3(config, layout, parameters, groups, element, ranks)
    whole = sum(sum(p.numel(layout.tp) for p in group) for group in groups)
    moments = [1 if muon else 2 for muon in _of_muon(config, groups)]
    ema = config.optim.ema_decay is not None
    if layout.zero == 0:
        updated = sum(n * sum(p.numel(layout.tp) for p in group) for n, group in zip(moments, groups, strict=True))
        return StateBytes(
            weights=element * (whole + frozen), accumulators=FP32 * whole, master=0, optimizer=FP32 * updated,
            ema=FP32 * whole * ema, update=0, bucket=0,
        )  # fmt: skip
    padded = [_padded(group, layout.tp, ranks) for group in groups]
    parts = [size // ranks for size in padded]
    part = sum(parts)
    states = FP32 * sum(n * size for n, size in zip(moments, parts, strict=True))
    master, average = FP32 * part, FP32 * part * ema
    accumulators = _accumulators(groups, parts, layout, element, data_rank)
    reduced_in = FP32 if layout.zero == 1 else element  # stage 1 sums up in fp32, and reduces what it has summed up
    return StateBytes(
        weights=element * (sum(padded) + frozen),
        accumulators=accumulators,
        master=master,
        optimizer=states,
        ema=average,
        update=0 if layout.offload else FP32 * part,
        bucket=reduced_in * REDUCE_BUCKET_ELEMENTS,
        offloaded=layout.offload,
        staging=(FP32 + element) * part if layout.offload else 0,  # gradients, and new weights on their way back
    )


def _groups(parameters: Sequence[Parameter], *, muon: bool) -> list[list[Parameter]]:
    """Trained parameters as the optimizer groups them: decayed and not, and of the former those of Muon apart."""
    decayed = [p for p in parameters if p.trained and p.decays]
    plain = [p for p in parameters if p.trained and not p.decays]
    if muon:
        hidden = [p for p in decayed if p.hidden]
        return [group for group in (hidden, [p for p in decayed if not p.hidden], plain) if group]
    return [group for group in (decayed, plain) if group]


def _of_muon(config: TrainRun, groups: Sequence[Sequence[Parameter]]) -> list[bool]:
    """Which groups have one state in place of two moments."""
    muon = config.optim.algorithm == "muon"
    return [muon and all(p.hidden and p.decays for p in group) for group in groups]


def _padded(group: Sequence[Parameter], tp: int, ranks: int) -> int:
    multiple = 2 * ranks
    return -(-sum(p.numel(tp) for p in group) // multiple) * multiple


def _accumulators(
    groups: Sequence[Sequence[Parameter]], parts: Sequence[int], layout: Layout, element: int, data_rank: int
) -> int:
    """Stage 1 keeps whole gradients in fp32, stage 2 in bf16 runs the rank's part, in fp32 ones whole parameters."""
    if layout.zero == 1:
        return FP32 * sum(p.numel(layout.tp) for group in groups for p in group)
    if element == BF16:
        return FP32 * sum(parts)
    held = 0
    for group, part in zip(groups, parts, strict=True):
        begin, own = 0, (data_rank * part, (data_rank + 1) * part)
        for parameter in group:
            end = begin + parameter.numel(layout.tp)
            held += end - begin if begin < own[1] and end > own[0] else 0
            begin = end
    return FP32 * held


def _zero3(
    config: TrainRun,
    layout: Layout,
    parameters: Sequence[Parameter],
    groups: Sequence[Sequence[Parameter]],
    element: int,
    ranks: int,
) -> StateBytes:
    def part(group: Sequence[Parameter]) -> int:
        return sum(-(-p.numel(layout.tp) // ranks) for p in group)

    parts = [part(group) for group in groups]
    trained = sum(parts)
    moments = [1 if muon else 2 for muon in _of_muon(config, groups)]
    ema = config.optim.ema_decay is not None
    states = FP32 * sum(n * size for n, size in zip(moments, parts, strict=True))
    numels = [p.numel(layout.tp) for p in parameters]
    persistent = sum(numel for numel in numels if numel <= PERSISTENT_ELEMENTS)
    others = sum(numel for numel in numels if numel > PERSISTENT_ELEMENTS)
    live = min(others, LIVE_ELEMENTS + PREFETCH_ELEMENTS) if ranks > 1 else others
    return StateBytes(
        weights=element * (part(parameters) + persistent),
        accumulators=FP32 * trained,
        master=FP32 * trained,
        optimizer=states,
        ema=FP32 * trained * ema,
        update=0 if layout.offload else FP32 * trained,
        bucket=element * REDUCE_BUCKET_ELEMENTS,
        live=element * live,
        offloaded=layout.offload,
        staging=FP32 * trained if layout.offload else 0,
    )
