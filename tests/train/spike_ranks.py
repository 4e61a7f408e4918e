"""Steps under a layout with and without a limit of their loss, told number by number; run by `testing.ranks`."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any
from unittest.mock import patch

import torch

from megavideo.optim.schedule import learning_rate
from megavideo.parallel.distributed import Launch
from megavideo.parallel.engine import Engine
from megavideo.parallel.fragments import held_fragments
from megavideo.parity.packs import step_input
from megavideo.parity.process import build_parity_engine
from megavideo.parity.spec import ParitySpec
from megavideo.train.step import StepReport, Suspect, Trainer

# where DeepSpeed remembers the tensor-parallel groups of the last engine that had any, and takes them for the next
_ENGINE_GROUPS = "deepspeed.utils.groups.mpu"
_JUST = 1e-9


def compare_gated(launch: Launch, spec: ParitySpec, layouts: list[str]) -> dict[str, Any]:
    """For each layout: what three steps give, and what they give with limits, one of which the second step breaks."""
    found = {}
    for layout in layouts:
        with patch(_ENGINE_GROUPS, None):
            plain = _plain(launch, spec, layout)
        with patch(_ENGINE_GROUPS, None):
            gated = _gated(launch, spec, layout, plain["losses"])
        found[layout] = {"plain": plain, "gated": gated}
    return found


def _plain(launch: Launch, spec: ParitySpec, layout: str) -> dict[str, Any]:
    trainer, engine = _trainer(launch, spec, layout)
    reports = [_step(trainer, engine, spec, step, None)[0] for step in range(3)]
    return {"losses": [report.loss for report in reports], "state": _digest(engine)}


def _gated(launch: Launch, spec: ParitySpec, layout: str, losses: list[float]) -> dict[str, Any]:
    """The second step is first given a limit that its loss is just above, twice, and then one that it is just below."""
    trainer, engine = _trainer(launch, spec, layout)
    tries = [
        (0, losses[0] * 2),
        (1, losses[1] * (1 - _JUST)),
        (1, losses[1] / 2),
        (1, losses[1] * (1 + _JUST)),
        (2, None),
    ]
    rows = []
    for step, limit in tries:
        before = _digest(engine)
        report, suspects = _step(trainer, engine, spec, step, limit)
        moved = _digest(engine) != before
        rows.append(dataclasses.asdict(report) | {"moved": moved, "suspects": len(suspects)})
    return {"rows": rows, "state": _digest(engine)}


def _trainer(launch: Launch, spec: ParitySpec, layout: str) -> tuple[Trainer, Engine]:
    engine = build_parity_engine(spec, layout, launch)
    engine.create_state()
    mesh = engine.plan.mesh
    rate = learning_rate(spec.optim, 0, spec.steps)
    return Trainer(engine, mesh, launch.device, lambda step: rate), engine


def _step(
    trainer: Trainer, engine: Engine, spec: ParitySpec, step: int, limit: float | None
) -> tuple[StepReport, list[Suspect]]:
    mesh = engine.plan.mesh
    return trainer.step(step_input(spec, step, mesh.dp_rank, mesh.dp), limit)


def _digest(engine: Engine) -> str:
    """One hash of every state of the optimizer, its counts of updates, and the weights that the model computes with."""
    digest = hashlib.sha256()
    for fragment in held_fragments(engine):
        for name, values in sorted(fragment.states.items()):
            digest.update(name.encode() + values.detach().float().cpu().contiguous().numpy().tobytes())
        digest.update(str(float(fragment.steps)).encode())
    for name, parameter in engine.named_parameters():
        held = getattr(parameter, "ds_tensor", parameter).detach()
        digest.update(name.encode() + held.to(torch.float32).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
