"""Part 7: what the host does, by torch's profiler: kernels launched for one block, reads of the device in a step."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from rows import Row, Value
from session import Session
from step_run import StepCase, compiled_switch, random_dit
from torch import nn
from torch.profiler import ProfilerActivity, profile
from training_steps import COMPILED, EAGER, ENGINE, cases, chosen_attention, quick_start

from megavideo.config.schema.optim import OptimConfig
from megavideo.model.block import Conditioning
from megavideo.model.layers import LocalLayers
from megavideo.parallel.engines.engine import MicroBatch
from tools.gpu_check.one_rank import one_rank, one_update

_READ = "aten::_local_scalar_dense"
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cuStreamSynchronize")
_WARM_UP = 3


def measure(session: Session) -> Iterator[Row]:
    """One block forward and backward, eager and compiled; and a whole step of training's engine."""
    case = cases(session)[0]
    name = f"{case.model_name}, one block, {case.content.name}"
    yield from session.guarded(name, [EAGER, COMPILED], lambda: _block_rows(session, case, name))
    name = f"{case.model_name} of 2 blocks, a step, {case.content.name}"
    late = session.too_late(name, [ENGINE], session.sizes.engine_seconds)
    yield from late or session.guarded(name, [ENGINE], lambda: _engine_row(session, case, name))


def _block_rows(session: Session, case: StepCase, name: str) -> Iterator[Row]:
    model = random_dit(case.model, 1, LocalLayers(chosen_attention(session)), session.device)
    pack = case.content.pack(case.model, session.device, torch.bfloat16)
    assert model.embed is not None
    hidden = model.embed(pack)
    cond = model.conditioning(hidden)
    x = hidden.x.detach().requires_grad_()
    (block,) = model.blocks.values()
    fixed = _detached(cond)
    switch = compiled_switch([block], session.sizes.backend)
    for contestant, compiled in ((EAGER, False), (COMPILED, True)):
        late = session.too_late(name, [contestant], session.sizes.compile_seconds if compiled else 1.0)
        if late:
            yield from late
            continue
        switch(compiled)
        run = partial(_forward_backward, block, x, fixed)
        measured = lambda contestant=contestant, run=run: iter([_row(session, name, contestant, run)])  # noqa: E731
        yield from session.guarded(f"{name}, {contestant}", [contestant], measured)


def _detached(cond: Conditioning) -> Conditioning:
    """The same, as leaves: a block's own work ends there."""
    values = dict(vars(cond))
    for key in ("time", "modulation", "text"):
        if values[key] is not None:
            values[key] = values[key].detach().requires_grad_()
    return Conditioning(**values)


def _forward_backward(block: nn.Module, x: torch.Tensor, cond: Conditioning) -> None:
    out = block(x, cond=cond)
    out.backward(torch.ones_like(out))


def _engine_row(session: Session, case: StepCase, name: str) -> Iterator[Row]:
    with one_rank() as rank:
        engine = rank.engine(replace(case.model, layers=2), quick_start, OptimConfig(lr=1e-4))
        pack = case.content.pack(case.model, session.device, torch.bfloat16)
        target = torch.zeros_like(pack.tokens, dtype=torch.float32)
        batch = MicroBatch(pack, target, torch.ones(target.shape[0], device=session.device))
        try:
            yield _row(session, name, ENGINE, lambda: one_update(engine, batch, 1.0 / target.shape[0], 1e-5))
        finally:
            engine.close()


def _row(session: Session, case: str, name: str, run: Callable[[], object]) -> Row:
    """Count the events of one run, the fourth."""
    session.trying(name)
    for _ in range(_WARM_UP):
        run()
    session.clock.wait()
    begin = time.perf_counter()
    run()
    issued = time.perf_counter() - begin
    session.clock.wait()
    whole = time.perf_counter() - begin
    activities = [ProfilerActivity.CPU]
    if session.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiler:
        run()
        session.clock.wait()
    counts: Counter[str] = Counter()
    busy = 0.0
    for event in profiler.events():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if on_device:
            kind = "copies" if "Memcpy" in event.name or "Memset" in event.name else "kernels"
            counts[kind] += 1
            busy += event.time_range.elapsed_us()
            counts["copies_to_host"] += "Memcpy DtoH" in event.name
        else:
            counts["operations"] += event.name.startswith(("aten::", "megavideo::"))
            counts["host_reads"] += event.name == _READ
            counts["launches"] += event.name.startswith(_LAUNCHES)
            counts["waits"] += event.name in _WAITS
    values: dict[str, Value | None] = {
        **{key: counts[key] for key in ("operations", "launches", "kernels", "copies", "copies_to_host", "waits")},
        "host_reads": counts["host_reads"],
        "warned_reads": _warned_reads(session, run),
        "host_ms": issued * 1e3,
        "whole_ms": whole * 1e3,
        "device_busy_ms": busy / 1e3 if counts["kernels"] else None,
    }
    return session.row(case, name, values)


def _warned_reads(session: Session, run: Callable[[], object]) -> int | None:
    """Calls in one run that make the host wait, as torch itself warns of them on a GPU; None elsewhere."""
    if session.device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in told)
