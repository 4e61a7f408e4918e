"""The whole account of one stage on a cluster: size, memory, time, communication, cost, faults."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megavideo.config.schema.plan import PlanRun, SpeedsConfig
from megavideo.planning.communication import layer_bytes, pipeline_bytes, zero_bytes
from megavideo.planning.flops import BlockShape, train_flops
from megavideo.planning.from_config import StageWork, stage_work
from megavideo.planning.memory import MemoryPlan, memory_plan
from megavideo.planning.step_time import PUBLISHED_CONSTANTS, Constants, StepTime, step_time

if TYPE_CHECKING:
    from megavideo.config.curriculum import Stage

BF16, FP32 = 2, 4
_STATES = 4  # saved of each parameter in float32: weight, two moments, average
_HOUR = 3600.0
_SNAPSHOT_SECONDS = 2.0  # that an asynchronous save blocks a step: states copied to the host, and their end awaited


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs and takes. Bytes are of one GPU, unless a name says otherwise; `sent` by kind and step.

    `mfu` is of model FLOPs, without what is computed again. `checkpoint_every` is the interval in steps at which saves
    and repeated work cost least (Young 1974, Daly 2006), for saves that block as long as a snapshot takes.
    """

    stage: str
    layout: str
    gpus: int
    parameters: int
    flops: int
    tokens: int
    memory: MemoryPlan
    memory_of_gpu: int
    fits: bool
    time: StepTime
    mfu: float
    sent: dict[str, int]
    steps: int
    checkpoint_bytes: int
    checkpoint_seconds: float
    checkpoint_every: int
    faults: float
    input_bytes_per_second: float
    watts: float
    gpu_hour_price: float | None
    chip: str
    source: str
    calibrated: bool
    assumed: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs."""
        return self.tokens / self.time.total

    @property
    def hours(self) -> float:
        """Of the whole stage, without faults."""
        return self.steps * self.time.total / _HOUR

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs."""
        return self.hours * self.gpus

    @property
    def cost(self) -> float | None:
        """In the currency of the price; None without one."""
        return None if self.gpu_hour_price is None else self.gpu_hours * self.gpu_hour_price

    @property
    def megawatt_hours(self) -> float:
        """Of the GPUs at their full power, without what stands around them."""
        return self.gpu_hours * self.watts / 1e6


def constants_of(speeds: SpeedsConfig) -> Constants:
    """The fitted constants, and those that are given in place of them."""
    given = {
        name: value
        for name in ("products", "attention", "elements", "exposed")
        if (value := {"products": speeds.products, "attention": speeds.attention, "elements": speeds.elements,
                      "exposed": speeds.exposed}[name]) is not None
    }  # fmt: skip
    return replace(PUBLISHED_CONSTANTS, **given)


def plan_stage(stage: Stage, plan: PlanRun) -> StagePlan:
    """The account of a stage. Raises ConfigError where its layout cannot be on the cluster."""
    return account(stage_work(stage.config, plan), plan, stage.name)


def account(work: StageWork, plan: PlanRun, name: str = "") -> StagePlan:
    """The account of a stage's work."""
    config, scheme, chip = work.config, work.scheme, work.cluster.chip
    time = step_time(work.shape, scheme, work.cluster, constants_of(plan.speeds))
    memory = memory_plan(config, work.layout, work.pack, scheme.micro_steps)
    model = config.model
    packs = config.train.packs_per_step
    flops = packs * train_flops(BlockShape(model.layers, model.width, model.ffn), scheme.segments)
    tokens = packs * sum(tokens for tokens, _ in scheme.segments)
    gpus = scheme.ranks
    saved = _STATES * FP32 * work.shape.updated
    if config.optim.ema_decay is None:
        saved = saved * 3 // 4
    nodes = max(1, gpus // work.cluster.gpus_per_node)
    seconds = saved / (nodes * plan.node_gb_s * 1e9)
    between = plan.gpu_hours_between_faults * _HOUR / gpus
    blocks = _SNAPSHOT_SECONDS if config.checkpoint.asynchronous else seconds
    return StagePlan(
        stage=name,
        layout=work.layout.format(),
        gpus=gpus,
        parameters=work.shape.parameters,
        flops=flops,
        tokens=tokens,
        memory=memory,
        memory_of_gpu=chip.memory,
        fits=memory.peak <= chip.memory,
        time=time,
        mfu=flops / time.total / gpus / (chip.bf16_tflops * 1e12),
        sent=_sent(work),
        steps=config.train.steps,
        checkpoint_bytes=saved,
        checkpoint_seconds=seconds,
        checkpoint_every=max(1, round(math.sqrt(2 * blocks * between) / time.total)),
        faults=config.train.steps * time.total / between,
        input_bytes_per_second=_input_bytes(work) / time.total,
        watts=chip.watts,
        gpu_hour_price=plan.cluster.gpu_hour_price,
        chip=chip.label,
        source=chip.source,
        calibrated=chip.calibrated,
        assumed=work.assumed,
        changed=work.changed,
    )


def _sent(work: StageWork) -> dict[str, int]:
    """Bytes that a GPU sends in a step, by kind of parallelism (`communication`)."""
    layout, scheme, model = work.layout, work.scheme, work.config.model
    element = scheme.gradient_bytes
    tokens, text = scheme.tokens, work.config.data.text_tokens_per_pack
    layer = layer_bytes(layout, tokens, text, model.width, model.heads, element)
    layers = scheme.micro_steps * model.layers // layout.pp
    rows = tokens // layout.cp // (layout.tp if layout.sp else 1)
    boundaries = 0 if layout.pp == 1 else 2 * scheme.micro_steps
    held = work.shape.updated // layout.tp // layout.pp
    return {
        "tensor": layers * layer.tensor,
        "ulysses": layers * layer.ulysses,
        "ring": layers * layer.ring,
        "text": layers * layer.text,
        "pipeline": boundaries * pipeline_bytes(rows, model.width, element),
        "data": zero_bytes(held, layout.zero, element, (layout.dp or 1) * layout.cp, scheme.micro_steps),
    }


def _input_bytes(work: StageWork) -> int:
    """Latents and text that all ranks read for a step, in half precision."""
    data, model = work.config.data, work.config.model
    text = sum(text for _, text in work.scheme.segments)
    return work.config.train.packs_per_step * BF16 * (data.tokens_per_pack * model.patch_dim + text * model.text_dim)
