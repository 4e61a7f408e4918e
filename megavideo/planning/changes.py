"""Other layouts and recomputation for a stage: all that are legal, ranked; and the fewest changes by which it fits."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megavideo.config.curriculum import Stage
from megavideo.config.layout import CONTEXT_KINDS, ContextKind, Layout, PipelineSchedule, parse_layout
from megavideo.config.rules import check
from megavideo.config.schema.plan import PlanRun
from megavideo.config.schema.train import RecomputeConfig, TrainRun
from megavideo.errors import ConfigError
from megavideo.planning.from_config import cluster_of, stage_work
from megavideo.planning.memory import memory_plan
from megavideo.planning.stage_plan import constants_of
from megavideo.planning.states import state_bytes
from megavideo.planning.step_time import step_time

_DEGREES = (1, 2, 4, 8, 16, 32)
_MOST_TP = 8
_MOST_CHANGES = 3
_TOLD = 3


@dataclass(frozen=True)
class Change:
    """A way to train a stage: words of `megavideo train`, seconds of a step, memory and what of it the GPU has."""

    words: tuple[str, ...]
    step_seconds: float
    memory_peak: int
    packs_per_step: int


@dataclass(frozen=True)
class Refused:
    """Why candidates were left out, and how many for that."""

    reason: str
    candidates: int


@dataclass(frozen=True)
class Search:
    """Every candidate that fits, fastest first, and why the others do not count."""

    candidates: int
    ranked: tuple[Change, ...]
    refused: tuple[Refused, ...]


def search(stage: Stage, plan: PlanRun) -> Search:
    """All layouts and recomputation policies of a stage on the plan's cluster, with as many packs a step as it has.

    What the rules of training refuse is left out with their reason, and what does not fit into memory too.
    """
    refused: Counter[str] = Counter()
    found: list[Change] = []
    number = 0
    memory = cluster_of(plan.cluster).chip.memory
    for layout in _layouts(stage.config, plan):
        policies = _policies(stage.config)
        number += len(policies)
        config = replace(stage.config, layout=layout.format())
        try:
            check(config)
        except ConfigError as error:
            refused[f"{error.field}: {_general(error.rule)}"] += len(policies)
            continue
        if state_bytes(config, layout).on_device > memory:
            refused["weights and states alone are more than a GPU has"] += len(policies)
            continue
        for policy in policies:
            change = _weighed(replace(config, train=replace(config.train, recompute=policy)), plan, memory)
            if isinstance(change, str):
                refused[change] += 1
            else:
                found.append(change)
    ranked = sorted(found, key=lambda change: (change.step_seconds, change.memory_peak))
    return Search(number, tuple(ranked), tuple(Refused(reason, count) for reason, count in refused.items()))


def smallest_changes(stage: Stage, plan: PlanRun) -> tuple[Change, ...]:
    """The fastest of the ways to fit that change the fewest settings; none where three changes are not enough."""
    config = stage.config
    memory = cluster_of(plan.cluster).chip.memory
    choices = _choices(config)
    for count in range(1, _MOST_CHANGES + 1):
        found = []
        for axes in itertools.combinations(choices, count):
            for values in itertools.product(*(choices[axis] for axis in axes)):
                changed = _changed(config, dict(zip(axes, values, strict=True)))
                change = None if changed is None else _weighed(changed, plan, memory, rules=True)
                if isinstance(change, Change):
                    found.append(change)
        if found:
            return tuple(sorted(found, key=lambda change: change.step_seconds / change.packs_per_step)[:_TOLD])
    return ()


def _weighed(config: TrainRun, plan: PlanRun, memory: int, *, rules: bool = False) -> Change | str:
    """A candidate as what it takes, or why it does not count. With `rules` it is held to those of training first."""
    try:
        work = stage_work(config, plan)
        if rules:
            check(work.config)
    except ConfigError as error:
        return f"{error.field}: {_general(error.rule)}"
    needs = memory_plan(work.config, work.layout, work.pack, work.scheme.micro_steps).peak
    if needs > memory:
        return "needs more memory than a GPU has"
    seconds = step_time(work.shape, work.scheme, work.cluster, constants_of(plan.speeds)).total
    words = [f"layout={replace(work.layout, dp=None).format()}", *_recompute_words(config.train.recompute)]
    packs = work.config.train.packs_per_step
    if packs != config.train.packs_per_step:
        words.append(f"train.packs_per_step={packs}")
    return Change(tuple(words), seconds, needs, packs)


def _layouts(config: TrainRun, plan: PlanRun) -> Iterator[Layout]:
    gpus = plan.cluster.nodes * plan.cluster.gpus_per_node
    schedules: tuple[PipelineSchedule, ...] = ("1f1b", "dualpipev")
    axes = itertools.product(_DEGREES, _context(), _DEGREES, schedules, (0, 1, 2, 3), (False, True))
    for tp, (cp, kind), pp, schedule, zero, offload in axes:
        size = tp * cp * pp
        if size > gpus or gpus % size or tp > _MOST_TP or (pp == 1 and schedule != "1f1b"):
            continue
        if zero == 0 and (offload or config.train.precision == "bf16"):
            continue
        yield Layout(
            tp=tp, sp=tp > 1, cp=cp, cp_kind=kind, pp=pp, dp=gpus // size, zero=zero,
            pp_schedule=schedule, offload=offload,
        )  # fmt: skip


def _context() -> Iterator[tuple[int, ContextKind | None]]:
    yield 1, None
    for cp in _DEGREES[1:]:
        yield from ((cp, kind) for kind in CONTEXT_KINDS)


def _policies(config: TrainRun) -> tuple[RecomputeConfig, ...]:
    half = max(1, config.model.layers // 2)
    return (
        RecomputeConfig(),
        RecomputeConfig(kind="selective", parts=("gelu",)),
        RecomputeConfig(kind="selective", parts=("ffn",)),
        RecomputeConfig(kind="selective", parts=("cross_attention", "ffn")),
        RecomputeConfig(kind="full", layers=half),
        RecomputeConfig(kind="full"),
    )


def _recompute_words(recompute: RecomputeConfig) -> list[str]:
    words = [f"train.recompute.kind={recompute.kind}"]
    if recompute.parts:
        words.append(f"train.recompute.parts=[{','.join(recompute.parts)}]")
    if recompute.layers is not None:
        words.append(f"train.recompute.layers={recompute.layers}")
    return words


def _choices(config: TrainRun) -> dict[str, tuple[object, ...]]:
    """Settings that save memory, and the values that save more than the present one."""
    layout, recompute = parse_layout(config.layout), config.train.recompute
    policies = [
        policy for policy in _policies(config)[1:] if recompute.kind == "none" or policy == RecomputeConfig(kind="full")
    ]
    found: dict[str, tuple[object, ...]] = {
        "recompute": tuple(policy for policy in policies if policy != recompute),
        "zero": tuple(range(layout.zero + 1, 4)),
        "tp": tuple(tp for tp in _DEGREES if layout.tp < tp <= _MOST_TP),
        "cp": tuple((cp, kind) for cp, kind in _context() if cp > layout.cp),
        "pp": tuple(pp for pp in _DEGREES if pp > layout.pp),
        "offload": () if layout.offload else (True,),
    }
    return {name: values for name, values in found.items() if values}


def _changed(config: TrainRun, values: dict[str, object]) -> TrainRun | None:
    layout = replace(parse_layout(config.layout), dp=None)
    for name, value in values.items():
        if name == "recompute":
            assert isinstance(value, RecomputeConfig)
            config = replace(config, train=replace(config.train, recompute=value))
        elif name == "cp":
            layout = replace(layout, cp=value[0], cp_kind=value[1])  # type: ignore[index]
        elif name == "tp":
            layout = replace(layout, tp=value, sp=True)  # type: ignore[arg-type]
        else:
            layout = replace(layout, **{name: value})  # type: ignore[arg-type]
    if layout.offload and layout.zero == 0:
        return None
    return replace(config, layout=layout.format())


def _general(rule: str) -> str:
    """A rule without the numbers of one candidate, so that those of many are counted together."""
    return re.sub(r"\d+(?!d\b)", "N", rule)
