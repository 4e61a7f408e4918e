"""Part 4: the model at the sizes it is made for: forward, backward and update, eager and compiled, in bf16 and FP8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from fitting import fit
from found_kernels import fastest
from packed_attention import AttentionCase
from rows import Row, Value
from session import Session
from step_run import StepCase, random_dit, step_runs, step_values
from timing import Lap, Run, Timing, describe

from megavideo.config.schema.optim import OptimConfig
from megavideo.config.schema.precision import LayersConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.errors import ConfigError
from megavideo.model.attention.operator import Attention
from megavideo.model.layers import Layers, LocalLayers
from megavideo.parallel.engines.engine import MicroBatch
from tools.gpu_check.one_rank import OneRank, one_rank, one_update

EAGER, COMPILED, ENGINE = "eager", "compiled", "engine of training"
FP8, FP8_COMPILED = "FP8 eager", "FP8 compiled"
_IN_FP8 = (FP8, FP8_COMPILED)
_CONTESTANTS = {EAGER: False, COMPILED: True, FP8: False}
# how long it takes to compile through Transformer Engine is not known: it comes last, and costs nothing else
_LAST = {COMPILED: True, FP8: False, FP8_COMPILED: True}
_RUNS = 3  # two to warm up, and one that counts


@dataclass
class Pace:
    """By what is judged which contestants there is time for: a slow rate, and seconds of one compilation."""

    flops_per_second: float
    compile_seconds: float
    seen: list[float] = field(default_factory=list)

    def seconds(self, case: StepCase, *, compiled: bool) -> float:
        """What one contestant takes at least."""
        return _RUNS * case.flops / self.flops_per_second + (self.compile_seconds if compiled else 0.0)

    def learn(self, case: StepCase, timings: Mapping[str, Timing]) -> None:
        """Take over what a case has shown."""
        for name, timing in timings.items():
            self.seen.append(case.flops / timing.median)
            if name == COMPILED or name.endswith(f" {COMPILED}"):
                self.compile_seconds = max(0.0, timing.first_seconds - timing.median)
        if self.seen:
            self.flops_per_second = 0.7 * min(self.seen)

    def choose(self, session: Session, case: StepCase, names: Mapping[str, bool]) -> tuple[dict[str, bool], list[Row]]:
        """Those of `names` (by each, whether compiled) that there is time for together, and rows of the others."""
        chosen, rows, needed = {}, [], 0.0
        for name, compiled in names.items():
            own = self.seconds(case, compiled=compiled)
            late = session.too_late(case.name, [name], needed + own)
            rows += late
            if not late:
                chosen[name] = compiled
                needed += own
        return chosen, rows


def cases(session: Session) -> list[StepCase]:
    """In the order of their importance."""
    sizes = session.sizes
    short, middle, *long = sizes.clips
    return [
        StepCase(sizes.base_name, sizes.base, short),
        StepCase(sizes.base_name, sizes.base, middle),
        StepCase(sizes.slice_name, sizes.slice, middle),
        StepCase(sizes.base_name, sizes.base, sizes.images),
        *(StepCase(sizes.base_name, sizes.base, content) for content in long),
    ]


def chosen_attention(session: Session) -> Attention:
    """The kernel that was fastest on a whole clip of middle length. Raises RuntimeError where there is none."""
    sizes = session.sizes
    case = AttentionCase(sizes.head_widths[0], sizes.attention_width // sizes.head_widths[0], 1, sizes.lengths[0])
    found = fastest(session.device, session.earlier, case.name)
    if found is None:
        raise RuntimeError(f"no attention kernel for packs on {session.device.type} was found")
    return found


def measure(session: Session) -> Iterator[Row]:
    """Every case, as long as there is time; after the first two the engine of training on the first."""
    pace = Pace(session.sizes.slowest_flops, session.sizes.compile_seconds)
    with ExitStack() as stack:
        rank, why = _enter(stack)
        for number, case in enumerate(cases(session)):
            measured = partial(_case, session, case, pace, rank, why)
            yield from session.guarded(case.name, list(_CONTESTANTS), measured)
            if number == 1:
                first = cases(session)[0]
                measured = partial(_engine_case, session, first, pace, rank, why)
                yield from session.guarded(f"{first.name}, {ENGINE}", [ENGINE], measured)
        wide = cases(session)[2]
        last = StepCase(f"{wide.model_name} in FP8", wide.model, wide.content)
        measured = partial(_case, session, last, pace, rank, why, _LAST)
        yield from session.guarded(last.name, list(_LAST), measured)


def _enter(stack: ExitStack) -> tuple[OneRank | None, str]:
    """A process group for what needs one, or why there is none."""
    try:
        return stack.enter_context(one_rank()), ""
    except Exception as error:  # noqa: BLE001  what needs no process group can be measured without
        return None, describe(error)


def _case(
    session: Session,
    case: StepCase,
    pace: Pace,
    rank: OneRank | None,
    why: str,
    names: Mapping[str, bool] = _CONTESTANTS,
) -> Iterator[Row]:
    attention = chosen_attention(session)
    wanted, late = pace.choose(session, case, names)
    yield from late
    if not wanted:
        return
    recompute = fit(session, case.model, case.content, attention)
    torch._dynamo.reset()  # so that what is compiled here is for these sizes alone, as in a run
    plain = {name: compiled for name, compiled in wanted.items() if name not in _IN_FP8}
    fp8 = {name: compiled for name, compiled in wanted.items() if name in _IN_FP8}
    contestants: dict[str, Run] = _steps(session, case, LocalLayers(attention), recompute.config, plain)
    if fp8:
        te, missing = _te_layers(rank, why, attention)
        if te is None:
            yield from (session.skipped(case.name, name, missing) for name in fp8)
        else:
            contestants |= _steps(session, case, te, recompute.config, fp8)
    facts: dict[str, Value | None] = {
        "recompute": recompute.text,
        "kept_mb_per_block": recompute.kept_bytes / 1e6,
        "attention": attention.kernel.name,
        "padding_tokens": case.content.pack_tokens - case.content.tokens,
    }
    timings: dict[str, Timing] = {}

    def values(name: str, timing: Timing) -> dict[str, Value | None]:
        timings[name] = timing
        return step_values(session, case, timing) | facts

    yield from session.compare(case.name, contestants, values, seconds=session.left() / 3, rounds=5)
    pace.learn(case, timings)


def _te_layers(rank: OneRank | None, why: str, attention: Attention) -> tuple[Layers | None, str]:
    if rank is None:
        return None, why
    try:
        return rank.layers(LayersConfig(engine="te", fp8="current"), attention), ""
    except ConfigError as error:
        return None, str(error)


def _steps(
    session: Session,
    case: StepCase,
    layers: Layers,
    recompute: RecomputeConfig | None,
    names: Mapping[str, bool],
) -> dict[str, Run]:
    if not names:
        return {}
    model = random_dit(case.model, case.model.layers, layers, session.device, recompute)
    pack = case.content.pack(case.model, session.device, torch.bfloat16)
    blocks = list(model.blocks.values())
    return step_runs(names, lambda: model(pack), model, blocks, case.content.tokens, session.sizes.backend)


def _engine_case(session: Session, case: StepCase, pace: Pace, rank: OneRank | None, why: str) -> Iterator[Row]:
    """A step as training makes it: DeepSpeed's engine, fp32 weights, moments and average, clipping, host reads."""
    name = f"{case.name}, {ENGINE}"
    if rank is None:
        yield session.failed(name, ENGINE, why)
        return
    late = session.too_late(name, [ENGINE], pace.seconds(case, compiled=False) + session.sizes.engine_seconds)
    if late:
        yield from late
        return
    engine = rank.engine(case.model, quick_start, OptimConfig(lr=1e-4, ema_decay=0.9999))
    pack = case.content.pack(case.model, session.device, torch.bfloat16)
    batch = MicroBatch(pack, torch.zeros_like(pack.tokens, dtype=torch.float32), _token_weight(pack.tokens, case))

    def run(lap: Lap) -> None:
        one_update(engine, batch, 1.0 / case.content.tokens, 1e-5)

    try:
        contestants: dict[str, Run] = {ENGINE: run}
        yield from session.compare(
            name,
            contestants,
            lambda _, timing: step_values(session, case, timing),
            seconds=session.left() / 6,
            rounds=5,
        )
    finally:
        engine.close()


def quick_start(name: str, shape: torch.Size) -> torch.Tensor:
    """Start values that cost no time: one short run of random numbers over and over."""
    short = torch.randn(4099, generator=torch.Generator().manual_seed(len(name))) * 0.02
    return short.repeat(-(-shape.numel() // short.numel()))[: shape.numel()].reshape(shape)


def _token_weight(tokens: torch.Tensor, case: StepCase) -> torch.Tensor:
    weight = torch.zeros(tokens.shape[0], device=tokens.device)
    weight[: case.content.tokens] = 1.0
    return weight
