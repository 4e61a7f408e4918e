"""Checkpoints of a stage: when one is due, and what it says of the run."""

from __future__ import annotations

from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.saver import Checkpointer
from megavideo.config.curriculum import Stage
from megavideo.config.dump import to_yaml
from megavideo.config.schema.train import TrainRun
from megavideo.parallel.engines.fragments import owned_fragments
from megavideo.train.build import Parts
from megavideo.train.position import Position
from megavideo.train.record import Recorder


class Saving:
    """Saves the engine of `parts` through the checkpointer of the run, each step once."""

    def __init__(self, stage: Stage, parts: Parts, checkpointer: Checkpointer, recorder: Recorder, begin: int) -> None:
        self._config: TrainRun = stage.config
        self._parts = parts
        self._checkpointer = checkpointer
        self._recorder = recorder
        self._last_step = begin
        self._begun = False

    def is_due(self, step: int) -> bool:
        """True after every `checkpoint.every`th step."""
        return step % self._config.checkpoint.every == 0

    def save(self, step: int, position: Position, validation_loss: float | None = None) -> None:
        """Begin to save; the end of a stage, or of the run, is waited for by `finish`.

        Raises CheckpointError where saves go on failing.
        """
        if step == self._last_step and position.finished is None:
            return  # nothing was trained since
        layout = self._parts.layout.format()
        ends = position.finished is not None
        base = None if self._parts.base is None else self._parts.base.reference
        header = Header(step, layout, to_yaml(self._config), position.to_json(), validation_loss, ends, base)
        self._checkpointer.save(header, owned_fragments(self._parts.engine), overlap=True)
        self._last_step = step
        self._begun = True
        self.report()

    def settle(self) -> float | None:
        """Wait until nothing that is to be saved is still being copied: before anything but an update changes it.

        Seconds for which the save blocked training, None where none was begun since the last call.
        """
        blocked, begun, self._begun = self._checkpointer.settle(), self._begun, False
        return blocked if begun else None

    def report(self) -> None:
        """Record the saves that ended since the last call."""
        self._recorder.saved(self._checkpointer.poll())

    def finish(self) -> None:
        """Wait for the last save. Raises CheckpointError where it failed."""
        self._checkpointer.wait(required=True)
        self.report()
