"""Steps under a layout with copies that are late, told number by number; run by `testing.ranks`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

from megavideo.device.copies import DeviceCopies
from megavideo.device.cpu_copies import CpuCopies
from megavideo.device.late_copies import LateCopies
from megavideo.parallel import parallelize
from megavideo.parallel.processes.distributed import Launch
from megavideo.parity.spec import ParitySpec
from megavideo.testing.parity_training import parity_training
from megavideo.train import step
from tests.train.spike_ranks import _digest

STEPS = 2


class Unordered(LateCopies):
    """Copies whose results are handed out before they are there."""

    def to_device(self, tensors: Any) -> Any:
        coming = super().to_device(tensors)
        coming.get = lambda: coming._made  # type: ignore[method-assign]
        return coming


def compare_copies(launch: Launch, spec: ParitySpec, layouts: list[str]) -> dict[str, Any]:
    """For each layout: what steps come to with a CPU's copies, with late ones, and with ones that nobody waits for."""
    kinds = {"cpu": CpuCopies, "late": LateCopies, "unordered": Unordered}
    return {layout: {name: _trained(launch, spec, layout, kind) for name, kind in kinds.items()} for layout in layouts}


def _trained(launch: Launch, spec: ParitySpec, layout: str, kind: type[DeviceCopies]) -> dict[str, Any]:
    made: list[DeviceCopies] = []

    def choose(device: torch.device) -> DeviceCopies:
        made.append(kind())
        return made[-1]

    with ExitStack() as stack:
        for user in (parallelize, step):
            stack.enter_context(patch.object(user, "copies_for", choose))
        with parity_training(launch, spec, layout) as training:
            losses = [training.step(number)[0].loss for number in range(STEPS)]
            return {"losses": losses, "state": _digest(training.engine), "users": len(made)}
