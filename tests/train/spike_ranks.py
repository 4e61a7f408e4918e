"""Steps under a layout with and without a limit of their loss, told number by number; run by `testing.ranks`."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch

from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import held_fragments
from megavideo.parallel.processes.distributed import Launch
from megavideo.parity.spec import ParitySpec
from megavideo.testing.parity_training import ParityTraining, parity_training

_JUST = 1e-9


def compare_gated(launch: Launch, spec: ParitySpec, layouts: list[str]) -> dict[str, Any]:
    """For each layout: what three steps give, and what they give with limits, one of which the second step breaks."""
    found = {}
    for layout in layouts:
        with parity_training(launch, spec, layout) as training:
            plain = _plain(training)
        with parity_training(launch, spec, layout) as training:
            gated = _gated(training, plain["losses"])
        found[layout] = {"plain": plain, "gated": gated}
    return found


def _plain(training: ParityTraining) -> dict[str, Any]:
    reports = [training.step(step)[0] for step in range(3)]
    return {"losses": [report.loss for report in reports], "state": _digest(training.engine)}


def _gated(training: ParityTraining, losses: list[float]) -> dict[str, Any]:
    """The second step is first given a limit that its loss is just above, twice, and then one that it is just below."""
    tries = [
        (0, losses[0] * 2),
        (1, losses[1] * (1 - _JUST)),
        (1, losses[1] / 2),
        (1, losses[1] * (1 + _JUST)),
        (2, None),
    ]
    rows = []
    for step, limit in tries:
        before = _digest(training.engine)
        report, suspects = training.step(step, limit)
        moved = _digest(training.engine) != before
        rows.append(dataclasses.asdict(report) | {"moved": moved, "suspects": len(suspects)})
    return {"rows": rows, "state": _digest(training.engine)}


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
