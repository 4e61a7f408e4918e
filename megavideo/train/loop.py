"""The training loop: steps, numbers, checkpoints. What a step means is the Trainer's."""

from __future__ import annotations

import json
import logging
import math
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from megavideo.checkpoint.write import Header, write_checkpoint
from megavideo.config.dump import to_yaml
from megavideo.config.schema.train import TrainRun
from megavideo.errors import DataError, NumericsError
from megavideo.observe.metrics import MetricsWriter
from megavideo.observe.plot import plot_loss
from megavideo.observe.progress import StepResult, TrainingProgress
from megavideo.observe.run_folder import RunFolder
from megavideo.parallel.fragments import owned_fragments
from megavideo.planning.flops import BlockShape, train_flops
from megavideo.train.agree import in_agreement
from megavideo.train.build import Parts
from megavideo.train.feed import StepInput
from megavideo.train.same_input import check_same_input
from megavideo.train.step import StepReport, Suspect, Trainer

FAULTS_FILE = "faults.jsonl"
_NAMED_SUSPECTS = 8


@dataclass(frozen=True)
class LoopResult:
    """Losses of the first and last tenth of the steps that ran here, and how many were skipped."""

    first_loss: float
    last_loss: float
    skipped: int


class Loop:
    """Runs a training run from a step to its end. `metrics` is None on all but the first rank."""

    def __init__(
        self, config: TrainRun, parts: Parts, trainer: Trainer, folder: RunFolder, metrics: MetricsWriter | None
    ) -> None:
        self._config = config
        self._parts = parts
        self._trainer = trainer
        self._folder = folder
        self._metrics = metrics
        model = config.model
        self._shape = BlockShape(model.layers, model.width, model.ffn)

    def run(self, begin: int, progress: TrainingProgress) -> LoopResult:
        """Train steps [begin, train.steps).

        Raises NumericsError after `guard.max_skipped` skipped steps in a row, DataError where inputs cannot be read, or
        are not the same on ranks that train them together.
        """
        config, losses, skipped, in_a_row = self._config.train, [], 0, 0
        # closed on every way out: a thread left at work while the process ends can abort it
        with closing(self._parts.feed.steps(begin, config.steps, self._config.data.prefetch_packs)) as inputs:
            for given in in_agreement(inputs, self._trainer.device):
                if given.step == begin or given.step % config.check_inputs_every == 0:
                    check_same_input(given, self._parts.mesh, self._trainer.device)
                report, suspects = self._trainer.step(given)
                self._record(given, report, progress)
                losses.append(report.loss)
                if suspects:
                    skipped, in_a_row = skipped + 1, in_a_row + 1
                    self._tell_skipped(report, suspects)
                    if in_a_row >= self._config.guard.max_skipped:
                        raise NumericsError(self._gave_up(report, in_a_row))
                else:
                    in_a_row = 0
                done = given.step + 1
                if done % self._config.checkpoint.every == 0 or done == config.steps:
                    self._save(done)
        tenth = max(1, len(losses) // 10)
        return LoopResult(_mean(losses[:tenth]), _mean(losses[-tenth:]), skipped)

    def _record(self, given: StepInput, report: StepReport, progress: TrainingProgress) -> None:
        flops = train_flops(self._shape, given.segment_tokens)
        rates = progress.step(report.step + 1, StepResult(report.loss, report.grad_norm, given.tokens, flops))
        if self._metrics is None:
            return
        packs, budget = self._config.train.packs_per_step, self._config.data.tokens_per_pack
        self._metrics.write(
            report.step + 1,
            {
                "loss": report.loss,
                "grad_norm": report.grad_norm,
                "learning_rate": report.learning_rate,
                "skipped": not report.applied,
                "epoch": self._parts.feed.plan.epoch_of(report.step),
                "tokens": given.tokens,
                "fill": given.tokens / (packs * budget),
                "tokens_per_second": rates.tokens_per_second,
                "seconds": rates.seconds_per_step,
                "mfu": rates.mfu,
                **self._parts.feed.stream_metrics(),
            },
        )

    def _tell_skipped(self, report: StepReport, suspects: list[Suspect]) -> None:
        if self._metrics is None:
            return
        named = ", ".join(f"{s.sample_id} (visit {s.visit}, t {s.timestep:.1f}, grid {s.grid})" for s in suspects)
        logging.getLogger(__name__).warning(
            "step %d skipped: loss %s, gradient norm %s; samples: %s",
            report.step + 1, report.loss, report.grad_norm, _cut(named, len(suspects)),
        )  # fmt: skip
        row = {"step": report.step + 1, "kind": "non_finite", "loss": str(report.loss),
               "samples": [asdict(s) | {"error": str(s.error)} for s in suspects]}  # fmt: skip
        with (self._folder.root / FAULTS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _gave_up(self, report: StepReport, in_a_row: int) -> str:
        return (
            f"{in_a_row} steps in a row, the last of them {report.step + 1}, had a non-finite loss or gradient; see "
            f"{self._folder.root / FAULTS_FILE} for their samples. Remedy: lower optim.lr or remove those samples; "
            "the last checkpoint is from before the first of them or later"
        )

    def _save(self, step: int) -> Path:
        engine, layout = self._parts.engine, self._parts.layout
        header = Header(step, layout.format(), to_yaml(self._config))
        fragments = owned_fragments(engine)
        keep = self._config.checkpoint.keep_last
        path = write_checkpoint(self._folder.checkpoints, header, fragments, keep=keep)
        if self._metrics is not None:
            logging.getLogger(__name__).info("saved %s", path)
            self._plot()
        return path

    def _plot(self) -> None:
        """A picture that cannot be drawn, as one of no finite loss, ends no run."""
        try:
            plot_loss(self._folder.metrics, self._folder.pictures / "loss.png")
        except (DataError, OSError) as error:
            logging.getLogger(__name__).warning("no loss plot: %s", error)


def _cut(text: str, count: int) -> str:
    parts = text.split("), ")
    if count <= _NAMED_SUSPECTS:
        return text
    return "), ".join(parts[:_NAMED_SUSPECTS]) + f") and {count - _NAMED_SUSPECTS} more"


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
