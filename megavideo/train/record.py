"""What a run writes of itself: the numbers of each step, its faults, stages and validations. Only rank 0 writes."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from megavideo.checkpoint.saver import SaveEvent
from megavideo.config.curriculum import Stage
from megavideo.errors import DataError
from megavideo.generate.sample_files import ShownSamples
from megavideo.observe.faults import FaultKind, FaultLog
from megavideo.observe.memory import memory_metrics
from megavideo.observe.metrics import MetricsSink, MetricsWriter
from megavideo.observe.plot import plot_loss
from megavideo.observe.run_folder import RunFolder
from megavideo.observe.stages import StageLog, StageRow
from megavideo.observe.tensorboard import TensorBoardSink
from megavideo.observe.validations import ValidationLog
from megavideo.observe.wandb import WandbSink
from megavideo.train.position import Position
from megavideo.train.step import StepReport, Suspect

FAULTS_FILE = "faults.jsonl"
BAD_SAMPLES_FILE = "bad_samples.txt"
_NAMED_SUSPECTS = 8
_PLOT_SECONDS = 120.0  # all ranks wait while one draws

_log = logging.getLogger(__name__)


class Recorder:
    """The record of a stage from `step` on. What the files tell of later steps is dropped, as those are made again.

    On ranks other than the first (`first` False) every call does nothing.
    """

    def __init__(self, stage: Stage, folder: RunFolder, step: int, first: bool) -> None:
        self._stage = stage
        self._folder = folder
        self._first = first
        self._next_plot = time.monotonic() + _PLOT_SECONDS
        if first:
            config = stage.config
            self._tensorboard = TensorBoardSink(folder.tensorboard, step) if config.observe.tensorboard else None
            self._metrics = MetricsWriter(folder.metrics, step, self._sinks())
            self._faults = FaultLog(folder.root / FAULTS_FILE, step)
            self._validations = ValidationLog(folder.root / "validation.jsonl", step)
            self._stages = StageLog(folder.root / "stages.jsonl", step)

    def close(self) -> None:
        """Write out what is held back."""
        if self._first:
            self._metrics.close()

    def begins(self, position: Position, layout: str) -> None:
        """The stage begins or goes on."""
        if self._first and self._stage.number:
            row = StageRow(
                position.stage, position.number, self._stage.of, position.first_step + 1, None,
                self._stage.config.train.steps, layout,
            )  # fmt: skip
            self._stages.begin(row)
            if self._tensorboard is not None:
                about = f"{position.stage}, stage {position.number} of {self._stage.of}, layout {layout}"
                self._tensorboard.write_stage(position.first_step + 1, about)

    def ends(self, step: int) -> None:
        """The stage is over."""
        if self._first:
            self._plot()
            if self._stage.number:
                self._stages.end(step)

    def step(self, report: StepReport, values: dict[str, Any]) -> None:
        """The numbers of a step; `values` are those beside what the step reports of itself."""
        if not self._first:
            return
        row = {
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "skipped": not report.applied,
            "spike": report.spike,
            **{f"loss_{name}": value for name, value in report.terms.items()},
            **values,
            **memory_metrics(torch.cuda.max_memory_allocated() or None),
            "stage": self._stage.name,
        }
        self._metrics.write(report.step + 1, row)

    def passed_over(self, step: int) -> None:
        """A step whose data is left out after a rollback."""
        if self._first:
            row = {"loss": None, "skipped": True, "passed_over": True, "tokens": 0, "stage": self._stage.name}
            self._metrics.write(step + 1, row)

    def skipped(self, report: StepReport, suspects: Sequence[Suspect]) -> None:
        """A step that was not applied, and the samples it was made of."""
        if not self._first:
            return
        named = [f"{s.sample_id} (visit {s.visit}, t {s.timestep:.1f}, grid {s.grid})" for s in suspects]
        more = f" and {len(named) - _NAMED_SUSPECTS} more" if len(named) > _NAMED_SUSPECTS else ""
        _log.warning(
            "step %d skipped: loss %s, gradient norm %s; samples: %s%s",
            report.step + 1, report.loss, report.grad_norm, ", ".join(named[:_NAMED_SUSPECTS]), more,
        )  # fmt: skip
        kind: FaultKind = "spike" if report.spike else "non_finite"
        self._list_bad([s.sample_id for s in suspects if not math.isfinite(s.error)])
        samples = [asdict(s) | {"error": str(s.error)} for s in suspects]
        self._faults.write(report.step + 1, kind, loss=str(report.loss), samples=samples)

    def fault(self, step: int, kind: FaultKind, **fields: Any) -> None:
        """Any other fault after `step` steps."""
        if self._first:
            self._faults.write(step, kind, **fields)

    def saved(self, events: Sequence[SaveEvent]) -> None:
        """Saves that ended; a picture of the loss is drawn after one that worked."""
        if not self._first:
            return
        for event in events:
            if (reason := event.failure or event.copy_failure) is not None:
                self._faults.write(event.step, "save_failed", reason=reason, place=event.place)
        if any(event.failure is None for event in events) and time.monotonic() >= self._next_plot:
            self._plot()

    def validated(self, step: int, values: dict[str, Any]) -> None:
        """What a validation measured."""
        if self._first:
            self._validations.write(step, self._stage.name, values)
            if self._tensorboard is not None:
                self._tensorboard.write_validation(step, values)

    def samples(self, shown: ShownSamples) -> None:
        """Samples of fixed prompts, whose files are written."""
        if self._first:
            self._metrics.write_samples(shown.step, shown.sheet)

    def _sinks(self) -> list[MetricsSink]:
        config, sinks = self._stage.config, list[MetricsSink]()
        if self._tensorboard is not None:
            sinks.append(self._tensorboard)
        if config.observe.wandb:
            project = config.observe.wandb_project or "megavideo"
            sinks.append(WandbSink(project, config.name, self._folder.root, asdict(config)))
        return sinks

    def _list_bad(self, sample_ids: Sequence[str]) -> None:
        """Keep the ids of samples that gave what is not finite in a file which `guard.exclude` takes as it is.

        A list that cannot be written ends no run: the same ids are logged, and stand in faults.jsonl.
        """
        path = self._folder.root / BAD_SAMPLES_FILE
        try:
            known = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
            fresh = [sample_id for sample_id in dict.fromkeys(sample_ids) if sample_id not in known]
            if fresh:
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(f"{sample_id}\n" for sample_id in fresh))
        except OSError as error:
            _log.warning("%s could not be written (%s): %s", path, error, ", ".join(sample_ids))
            return
        if fresh:
            _log.warning("%d samples more are listed in %s; guard.exclude=%s leaves them out", len(fresh), path, path)

    def _plot(self) -> None:
        """A picture that cannot be drawn, as one of no finite loss, ends no run."""
        self._next_plot = time.monotonic() + _PLOT_SECONDS
        try:
            plot_loss(self._folder.metrics, self._folder.pictures / "loss.png")
        except (DataError, OSError) as error:
            _log.warning("no loss plot: %s", error)


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()
