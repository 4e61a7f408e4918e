"""What one training step means: accumulate a rank's packs, update once, and say what happened."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from megavideo.config.schema.train import TrainRun
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.engine import Engine
from megavideo.parallel.mesh import ProcessMesh
from megavideo.train.feed import StepInput
from megavideo.train.noising import TrainBatch


@dataclass(frozen=True)
class StepReport:
    """One global step: its loss over all ranks, the gradient norm before clipping and the learning rate.

    `applied` is False where a non-finite loss or gradient made the step be skipped.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    applied: bool


@dataclass(frozen=True)
class Suspect:
    """A segment that a skipped step trained on."""

    rank: int
    sample_id: str
    visit: int
    timestep: float
    grid: tuple[int, ...]
    error: float


class Trainer:
    """Runs steps on the engine."""

    def __init__(self, config: TrainRun, engine: Engine, mesh: ProcessMesh, device: torch.device) -> None:
        self._config = config
        self._engine = engine
        self._mesh = mesh
        self.device = device

    def step(self, given: StepInput) -> tuple[StepReport, list[Suspect]]:
        """Train on this rank's packs; the suspects of all ranks are named where the step was skipped."""
        rate = learning_rate(self._config.optim, given.step, self._config.train.steps)
        # the engine takes the mean over ranks and packs; times their number it is the sum, and so over all tokens
        scale = self._mesh.loss_replicas * len(given.batches) / given.loss_tokens
        total = torch.zeros((), device=self.device)
        errors: list[torch.Tensor] = []
        outcome = None
        for i, batch in enumerate(given.batches):
            batch = batch.to(self.device, self._engine.dtype)
            error = self._token_errors(batch)
            total += error.sum().detach()
            errors.append(error.detach())
            self._engine.backward(error.sum() * scale)
            outcome = self._engine.step(rate, last=i + 1 == len(given.batches))
        dist.all_reduce(total)
        assert outcome is not None
        loss = float(total) / given.loss_tokens
        report = StepReport(given.step, loss, outcome.grad_norm, rate, outcome.applied)
        return report, [] if outcome.applied else self._suspects(given, errors)

    def _token_errors(self, batch: TrainBatch) -> torch.Tensor:
        prediction = self._engine.forward(batch.pack)
        return (prediction.float() - batch.target).square().mean(dim=1) * batch.weight

    def _suspects(self, given: StepInput, errors: list[torch.Tensor]) -> list[Suspect]:
        """Segments with a non-finite error, from all ranks; every segment where the errors were finite."""
        mine: list[dict[str, Any]] = []
        for batch, error in zip(given.batches, errors, strict=True):
            bounds = batch.pack.cu_seqlens.tolist()
            for i, sample_id in enumerate(batch.pack.sample_ids):
                if sample_id:
                    grid = tuple(batch.pack.grid[i].tolist())
                    value = float(error[bounds[i] : bounds[i + 1]].sum())
                    timestep = float(batch.pack.timestep[i])
                    visit = batch.pack.visits[i]
                    mine.append(asdict(Suspect(self._mesh.rank, sample_id, visit, timestep, grid, value)))
        gathered: list[list[dict[str, Any]]] = [[]] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        everyone = [Suspect(**row) for rows in gathered for row in rows]
        return [s for s in everyone if not math.isfinite(s.error)] or everyone
