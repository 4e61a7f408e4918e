"""Part 5: diffusers' WanTransformer3DModel beside ours: the same weights, shapes and update, in turns in one loop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from fitting import Fit, fit
from rows import Row, Value, value_of
from session import Session
from step_run import StepCase, random_dit, step_runs, step_values
from timing import Run, Timing
from training_steps import COMPILED, EAGER, Pace, cases, chosen_attention

from megavideo.config.schema.train import RecomputeConfig
from megavideo.data.patches import unpatchify
from megavideo.interop.weights import to_wan, wan_config
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.types import PackedBatch

_THEY_KEEP = 1.25  # times what ours keeps for the backward pass, as counted on meta tensors
OURS, THEIRS = "ours", "diffusers"
_CONTESTANTS = {
    f"{OURS} {EAGER}": False,
    f"{THEIRS} {EAGER}": False,
    f"{OURS} {COMPILED}": True,
    f"{THEIRS} {COMPILED}": True,
}


def measure(session: Session) -> Iterator[Row]:
    """The cases of part 4, and after each the ratios of speed."""
    slowest = [row.values["tflops"] for row in session.earlier if row.part == "model" and "tflops" in row.values]
    rate = 0.5e12 * min(float(value) for value in slowest) if slowest else session.sizes.slowest_flops
    compiling = value_of(session.earlier, "first_s", part="model", name=COMPILED)
    pace = Pace(rate, session.sizes.compile_seconds if compiling is None else compiling)
    for case in cases(session):
        yield from session.guarded(case.name, list(_CONTESTANTS), partial(_case, session, case, pace))


def _case(session: Session, case: StepCase, pace: Pace) -> Iterator[Row]:
    attention = chosen_attention(session)
    wanted, late = pace.choose(session, case, _CONTESTANTS)
    yield from late
    if not wanted:
        return
    # diffusers recomputes every block or none, and so do both
    found = fit(session, case.model, case.content, attention, models=2, more=_THEY_KEEP)
    everything = None if found.config is None else RecomputeConfig(kind="full")
    torch._dynamo.reset()
    ours = random_dit(case.model, case.model.layers, LocalLayers(attention), session.device, everything)
    theirs = _wan(ours, session.device, recompute=everything is not None)
    pack = case.content.pack(case.model, session.device, torch.bfloat16)
    given = _unpacked(case, pack)
    calls = {OURS: lambda: ours(pack), THEIRS: lambda: theirs(*given, return_dict=False)[0]}
    with torch.no_grad():
        difference = _difference(case, calls[OURS](), calls[THEIRS]())
    contestants: dict[str, Run] = {}
    for whose, model, blocks, tokens in (
        (OURS, ours, ours.blocks.values(), case.content.tokens),
        (THEIRS, theirs, theirs.blocks, None),
    ):
        names = {name: compiled for name, compiled in wanted.items() if name.startswith(whose)}
        contestants |= step_runs(names, calls[whose], model, list(blocks), tokens, session.sizes.backend)
    yield from _contest(session, case, contestants, found, pace, difference)


def _contest(
    session: Session,
    case: StepCase,
    contestants: dict[str, Run],
    found: Fit,
    pace: Pace,
    difference: float,
) -> Iterator[Row]:
    timings: dict[str, Timing] = {}
    recompute = "none" if found.config is None else "every block"

    def values(name: str, timing: Timing) -> dict[str, Value | None]:
        timings[name] = timing
        return step_values(session, case, timing) | {"recompute": recompute}

    yield from session.compare(case.name, contestants, values, seconds=session.left() / 3, rounds=5)
    pace.learn(case, timings)
    for mine, other in ((EAGER, EAGER), (COMPILED, COMPILED), (EAGER, COMPILED)):
        one, two = timings.get(f"{OURS} {mine}"), timings.get(f"{THEIRS} {other}")
        name = f"ratio of speed, ours {mine} over diffusers {other}"
        if one is None or two is None:
            yield session.skipped(case.name, name, "one of the two was not measured")
            continue
        ratios = {"ratio": two.median / one.median, "least": two.low / one.high, "most": two.high / one.low}
        yield session.row(case.name, name, ratios | {"difference_of_outputs": difference})


def _wan(ours: DiT, device: torch.device, *, recompute: bool) -> Any:
    """Their model with our weights."""
    from diffusers import WanTransformer3DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of bf16 in all parts, which is meant
    with device:
        theirs: Any = WanTransformer3DModel(**wan_config(ours.config))
    theirs.to(device, torch.bfloat16)
    theirs.load_state_dict(to_wan(ours.state_dict(), ours.config))
    if recompute:
        theirs.enable_gradient_checkpointing()
    return theirs.train()


def _unpacked(case: StepCase, pack: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pack's samples as a batch: latents [K, C, T, H, W], timesteps [K] and texts [K, M / K, text_dim]."""
    content = case.content
    samples = pack.tokens[: content.tokens].unflatten(0, (content.count, -1))
    latents = torch.stack([unpatchify(tokens, content.grid, case.model.patch) for tokens in samples])
    text = pack.text[: content.count * content.text_tokens].unflatten(0, (content.count, -1))
    return latents, pack.timestep, text


def _difference(case: StepCase, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative difference of the two predictions."""
    samples = ours[: case.content.tokens].unflatten(0, (case.content.count, -1))
    mine = torch.stack([unpatchify(tokens, case.content.grid, case.model.patch) for tokens in samples]).float()
    return ((mine - theirs.float()).norm() / theirs.float().norm()).item()
