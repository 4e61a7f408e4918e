"""Steps of a small training under a layout, between which a test looks at its engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from megavideo.optim.schedule import learning_rate
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import destroy_groups
from megavideo.parity.packs import step_input
from megavideo.parity.process import build_parity_engine
from megavideo.parity.spec import ParitySpec
from megavideo.train.step import StepReport, Suspect, Trainer


class ParityTraining:
    """A training of `spec` that has made no step."""

    def __init__(self, launch: Launch, spec: ParitySpec, layout: str) -> None:
        self.engine: Engine = build_parity_engine(spec, layout, launch)
        self.engine.create_state()
        self._spec = spec
        rate = partial(learning_rate, spec.optim, num_steps=spec.steps)
        self._trainer = Trainer(self.engine, self.engine.plan.mesh, launch.device, rate)

    def step(self, number: int, limit: float | None = None) -> tuple[StepReport, list[Suspect]]:
        """Train on the packs of a step, from 0; a collective call."""
        mesh = self.engine.plan.mesh
        return self._trainer.step(step_input(self._spec, number, mesh.dp_rank, mesh.dp), limit)


@contextmanager
def parity_training(launch: Launch, spec: ParitySpec, layout: str) -> Iterator[ParityTraining]:
    """One for the block, at whose end its groups are destroyed: their threads take time from those of the next."""
    training = ParityTraining(launch, spec, layout)
    yield training
    training.engine.close()
    destroy_groups()
