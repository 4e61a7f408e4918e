"""What one training step means: accumulate a rank's packs, update once, and say what happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from megavideo.device.choice import copies_for
from megavideo.model.pack_index import PackBounds
from megavideo.parallel.engines.engine import Engine, MicroBatch, StepOutcome
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.packs.feed import StepInput
from megavideo.train.packs.loading import Loader
from megavideo.train.packs.noising import TrainBatch


@dataclass(frozen=True)
class StepReport:
    """One global step: its loss over all ranks, the gradient norm before clipping and the learning rate.

    `applied` is False where a non-finite loss or gradient made the step be skipped, or, with `spike`, a loss over the
    limit. `terms` has the further terms of the loss by name, without their weights; `loss` does not contain them.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    applied: bool
    spike: bool = False
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Suspect:
    """A segment that a skipped step trained on; `rank` is the first of those that had a part of it."""

    rank: int
    sample_id: str
    visit: int
    timestep: float
    grid: tuple[int, ...]
    error: float


def squared_error(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean squared error of each token: prediction and target [n, P], weight [n] -> [n], float32."""
    return (prediction.float() - target).square().mean(dim=1) * weight


class Trainer:
    """Runs steps on the engine. `rate` gives the learning rate of a step."""

    def __init__(self, engine: Engine, mesh: ProcessMesh, device: torch.device, rate: Callable[[int], float]) -> None:
        self._engine = engine
        self._loader = Loader(copies_for(device), engine.dtype)
        self._mesh = mesh
        self._rate = rate
        self.device = device

    def step(self, given: StepInput, limit: float | None = None) -> tuple[StepReport, list[Suspect]]:
        """Train on this rank's packs; the suspects of all ranks are named where the step was skipped.

        A step whose loss exceeds `limit` is skipped like one whose loss is not finite.
        """
        rate = self._rate(given.step)
        # the engine takes the mean over ranks and packs; times their number it is the sum, and so over all tokens
        scale = self._mesh.loss_replicas * len(given.batches) / given.loss_tokens
        counted = self._mesh.loss_copies * given.loss_tokens
        bounds = [PackBounds.of(batch.pack) for batch in given.batches]
        # closed, as a pipeline's engine keeps what it was given until the next step
        with closing(self._loader.on_device(given.batches)) as batches:
            made = map(self._micro_batch, batches)
            outcome = self._engine.update(made, bounds, scale, rate, None if limit is None else limit * counted)
        error, spiked, *terms = self._over_ranks(outcome)
        names = self._term_names()
        report = StepReport(
            given.step, error / counted, outcome.grad_norm, rate, outcome.applied, spiked > 0,
            {name: value / counted for name, value in zip(names, terms, strict=True)},
        )  # fmt: skip
        return report, [] if outcome.applied else self._suspects(given, outcome.errors)

    def _over_ranks(self, outcome: StepOutcome) -> list[float]:
        """Sums over all processes: errors, how many of them met a spike, and the further terms."""
        total = torch.zeros(2 + len(self._term_names()), dtype=torch.float64, device=self.device)
        for error in outcome.errors:
            total[0] += error.double().sum()
        total[1] += outcome.spike
        for values in outcome.terms:
            total[2:] += values
        dist.all_reduce(total)
        sums: list[float] = total.tolist()
        return sums

    def _term_names(self) -> list[str]:
        terms = self._engine.plan.terms
        return [] if terms is None else list(terms.weights)

    def _micro_batch(self, batch: TrainBatch) -> MicroBatch:
        own = self._mesh.own_tokens(batch.target.shape[0])
        labels = () if batch.terms is None else batch.terms.tensors()
        return MicroBatch(batch.pack, batch.target[own], batch.weight[own], labels)

    def _suspects(self, given: StepInput, errors: Sequence[torch.Tensor]) -> list[Suspect]:
        """Segments with a non-finite error, from all ranks; every segment where the errors were finite."""
        mine: list[dict[str, Any]] = []
        # a pipeline's first stages form no errors
        for batch, error in zip(given.batches, errors, strict=False):
            own = self._mesh.own_tokens(batch.target.shape[0])
            bounds = [min(max(bound, own.start), own.stop) - own.start for bound in batch.pack.cu_seqlens.tolist()]
            for i, sample_id in enumerate(batch.pack.sample_ids):
                if sample_id and bounds[i + 1] > bounds[i]:
                    grid = tuple(batch.pack.grid[i].tolist())
                    value = float(error[bounds[i] : bounds[i + 1]].sum()) / self._mesh.loss_copies
                    timestep = float(batch.pack.timestep[i])
                    visit = batch.pack.visits[i]
                    mine.append(asdict(Suspect(self._mesh.rank, sample_id, visit, timestep, grid, value)))
        gathered: list[list[dict[str, Any]]] = [[]] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        everyone = whole_segments(Suspect(**row) for rows in gathered for row in rows)
        return [s for s in everyone if not math.isfinite(s.error)] or everyone


def whole_segments(parts: Iterable[Suspect]) -> list[Suspect]:
    """Each segment once, with its whole error: ranks may have a part of its tokens each, or all of them alike."""
    found: dict[tuple[str, int], Suspect] = {}
    for part in parts:
        key = (part.sample_id, part.visit)  # a visit of a sample is in one pack of a step
        before = found.get(key)
        found[key] = part if before is None else replace(before, error=before.error + part.error)
    return list(found.values())
