"""Three steps with DeepSpeed's engine beside plain torch on the CPU, and a snapshot that is taken beside training."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from harness import Checks, difference
from one_rank import OneRank, one_update, squared_error
from small_pack import CONFIG, Given, given, small_dit, start_value
from torch import nn

from megavideo.checkpoint.snapshot import RankState, Snapshot
from megavideo.config.schema.optim import OptimConfig
from megavideo.model.layers import LocalLayers
from megavideo.optim.build import build_optimizer
from megavideo.parallel.engines.engine import Engine, MicroBatch
from megavideo.parallel.engines.fragments import Fragment, owned_fragments

STEPS, RATE = 3, 1e-3
# with so large an epsilon an update is near to linear in the gradient; else AdamW would make whole updates of the signs
# of rounding errors
OPTIM = OptimConfig(lr=RATE, eps=0.1, clip=1.0, ema_decay=0.9)
LOSS_LIMIT, NORM_LIMIT = 5e-3, 2e-2  # relative, of each step
CHANGE_LIMIT = 5e-2  # of what three steps changed of all weights, in the Euclidean norm
_STATES = ("weight", "ema")


@dataclass(frozen=True)
class Outcome:
    """Loss and gradient norm of each step, and what all of them changed of each state, over the whole model."""

    losses: list[float]
    norms: list[float]
    changes: dict[str, torch.Tensor]


def check_engine(checks: Checks, rank: OneRank) -> None:
    """The engine in bf16 under ZeRO-1, then its states in a snapshot."""
    plain = _plain_steps()
    engines: list[Engine] = []
    found: list[Outcome] = []
    label = "three steps with the engine, ZeRO-1, bf16, beside the CPU's"

    def train() -> float:
        engines.append(rank.engine(CONFIG, _bf16_start, OPTIM))
        engines[0].create_state()
        found.append(_engine_steps(engines[0], given(rank.device, torch.bfloat16)))
        return _worst(found[0].losses, plain.losses)

    def change(state: str) -> float:
        return difference(found[0].changes[state], plain.changes[state])

    checks.run(f"{label}: losses", train, LOSS_LIMIT)
    checks.run(f"{label}: gradient norms", lambda: _worst(found[0].norms, plain.norms), NORM_LIMIT)
    for state in _STATES:
        checks.run(
            f"{label}: change of {state}",
            partial(change, state),
            CHANGE_LIMIT,
        )
    checks.run("a snapshot taken beside training is exact", lambda: _snapshot(engines[0], rank.device))
    for engine in engines:
        engine.close()


def _bf16_start(name: str, shape: torch.Size) -> torch.Tensor:
    return start_value(name, shape).to(torch.bfloat16).float()


def _engine_steps(engine: Engine, batch: Given) -> Outcome:
    before = _states(owned_fragments(engine))
    losses, norms = [], []
    micro = MicroBatch(batch.pack, batch.target, batch.weight)
    count = float(batch.weight.sum())
    for _ in range(STEPS):
        outcome = one_update(engine, micro, 1.0 / count, RATE)
        assert outcome.applied, "a step was skipped"
        losses.append(float(outcome.errors[0].sum()) / count)
        norms.append(outcome.grad_norm)
    after = _states(owned_fragments(engine))
    return Outcome(losses, norms, {state: after[state] - before[state] for state in _STATES})


def _states(fragments: Iterator[Fragment]) -> dict[str, torch.Tensor]:
    """Each state of the whole model as one vector, in the order of names; float64, on the CPU."""
    ordered = sorted(fragments, key=lambda fragment: (fragment.name, fragment.start))
    return {state: torch.cat([f.states[state].double().cpu() for f in ordered]) for state in _STATES}


def _plain_steps() -> Outcome:
    """The same on the CPU: gradients in bf16, added to fp32 weights by the same optimizer."""
    cpu = torch.device("cpu")
    batch = given(cpu, torch.bfloat16)
    master = small_dit(LocalLayers(), cpu, torch.float32)
    model = small_dit(LocalLayers(), cpu, torch.bfloat16)
    optimizer = build_optimizer(master, OPTIM)
    optimizer.create_state(list(master.parameters()))
    before = _plain_states(master, optimizer)
    losses, norms = [], []
    count = float(batch.weight.sum())
    for _ in range(STEPS):
        errors = squared_error(model(batch.pack), batch.target, batch.weight)
        (errors.sum() / count).backward()
        losses.append(float(errors.detach().sum()) / count)
        for kept, used in zip(master.parameters(), model.parameters(), strict=True):
            kept.grad = None if used.grad is None else used.grad.float()
            used.grad = None
        norms.append(float(nn.utils.clip_grad_norm_(master.parameters(), OPTIM.clip or float("inf"))))
        for group in optimizer.param_groups:
            group["lr"] = RATE
        optimizer.step()
        with torch.no_grad():
            for kept, used in zip(master.parameters(), model.parameters(), strict=True):
                used.copy_(kept)
    after = _plain_states(master, optimizer)
    return Outcome(losses, norms, {state: after[state] - before[state] for state in _STATES})


def _plain_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    named = sorted(model.named_parameters())
    return {
        "weight": torch.cat([p.detach().double().flatten() for _, p in named]),
        "ema": torch.cat([optimizer.state[p]["ema"].double().flatten() for _, p in named]),
    }


def _worst(found: Sequence[float], exact: Sequence[float]) -> float:
    ratios = [abs(a - b) / b for a, b in zip(found, exact, strict=True)]
    return torch.tensor(ratios).max().item()  # unlike Python's, it keeps what is not a number


def _snapshot(engine: Engine, device: torch.device) -> None:
    """States are copied in a thread while passes run, then an update changes them; the copy has the old ones."""
    fragments = list(owned_fragments(engine))
    wanted = {
        (fragment.name, fragment.start, state): values.clone()
        for fragment in fragments
        for state, values in fragment.states.items()
    }
    batch = given(device, torch.bfloat16)
    micro = MicroBatch(batch.pack, batch.target, batch.weight)
    snapshot, taken = Snapshot(), []
    snapshot.reserve(fragments)
    final = snapshot.final(fragments)  # said here, as the update before was made in this thread
    thread = threading.Thread(target=lambda: taken.append(snapshot.take(fragments, final)))
    thread.start()
    for _ in range(3):
        batch.loss(engine.deepspeed.module(batch.pack).float()).item()
    thread.join()
    assert taken, "the snapshot failed"
    one_update(engine, micro, 1.0 / float(batch.weight.sum()), RATE)
    state: RankState = taken[0]
    found = 0
    for saved in (saved for file in state.files for saved in file):
        values = state.buffer[saved.begin : saved.end].view(saved.dtype)
        key = (saved.entry.name, saved.entry.start, saved.entry.state)
        assert torch.equal(values, wanted[key].cpu()), f"{key} differs"
        found += 1
    assert found == len(wanted) > 0, f"{found} of {len(wanted)} tensors"
    changed = [
        k for f in fragments for s, v in f.states.items() if not torch.equal(v, wanted[k := (f.name, f.start, s)])
    ]
    assert changed, "the update changed nothing, so that nothing was shown"
