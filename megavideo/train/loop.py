"""The training loop of a stage: steps, and between them what is due. What a step means is the Trainer's."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from megavideo.config.curriculum import Stage
from megavideo.config.schema.train import TrainRun
from megavideo.data.storage.owners import Ownership
from megavideo.observe.progress import StepResult, TrainingProgress
from megavideo.planning.flops import BlockShape, train_flops
from megavideo.train.build import Parts
from megavideo.train.health.agree import until_asked
from megavideo.train.health.signals import StopRequest
from megavideo.train.health.spike import SpikeLimit
from megavideo.train.health.stragglers import Stragglers
from megavideo.train.health.watchdog import SAVING, Watchdog
from megavideo.train.packs.feed import StepInput
from megavideo.train.packs.same_input import check_same_input
from megavideo.train.position import Position
from megavideo.train.record import Recorder
from megavideo.train.saving import Saving
from megavideo.train.stages import reached_exit
from megavideo.train.step import StepReport, Trainer
from megavideo.train.validation.preview import Previewer
from megavideo.train.validation.validation import Validator


@dataclass(frozen=True)
class Tools:
    """What the loop uses beside the parts of the run; `validator` and `previewer` are None where they are off.

    `owner` is that of the run folder, on rank 0 alone.
    """

    trainer: Trainer
    recorder: Recorder
    saving: Saving
    progress: TrainingProgress
    watchdog: Watchdog
    stop: StopRequest
    stragglers: Stragglers
    validator: Validator | None
    previewer: Previewer | None
    owner: Ownership | None


@dataclass(frozen=True)
class Ending:
    """How the loop left a stage after `step` steps of the run.

    `reason` is `finished`, `stopped` (it was asked to; saved) or `unstable`, with the steps, counted from 0, that were
    skipped in a row. `losses` are those of the steps made here, and `skipped` how many of them were not applied.
    """

    reason: str
    step: int
    position: Position
    losses: tuple[float, ...]
    skipped: int
    unstable: tuple[int, ...] = ()


@dataclass(frozen=True)
class _PassedOver:
    """A step whose data is left out for good."""

    step: int


class Loop:
    """Runs one stage from a position to its end."""

    def __init__(self, stage: Stage, parts: Parts, tools: Tools) -> None:
        self._stage = stage
        self._config: TrainRun = stage.config
        self._parts = parts
        self._tools = tools
        model = stage.config.model
        self._shape = BlockShape(model.layers, model.width, model.ffn)

    def run(self, begin: int, position: Position) -> Ending:
        """Train from after `begin` steps of the run until the stage is over, or something else ends the loop.

        Raises DataError where inputs cannot be read, or are not the same on ranks that train them together,
        CheckpointError where saves go on failing, and OutputInUse where the run folder was taken over.
        """
        tools, config = self._tools, self._config
        limit = self._spike_limit(position)
        losses: list[float] = []
        in_a_row: list[int] = []
        skipped, done = 0, begin
        # closed on every way out: a thread left at work while the process ends can abort it
        with closing(self._inputs(begin, position)) as inputs:
            timed = tools.stragglers.reading(inputs)
            for given, stop in until_asked(timed, tools.trainer.device, self._is_asked):
                if stop:
                    return self._stopped(done, position, losses, skipped)
                if isinstance(given, _PassedOver):
                    tools.recorder.passed_over(given.step)
                    done = given.step + 1
                else:
                    report = self._step(given, begin, None if limit is None else limit.limit)
                    losses.append(report.loss)
                    done = report.step + 1
                    if limit is not None:
                        limit.add(report.loss, applied=report.applied)
                        position = replace(position, losses=tuple(limit.state))
                    if report.applied:
                        in_a_row.clear()
                        position = position.trained(len(given.segment_tokens), given.tokens)
                    else:
                        skipped += 1
                        in_a_row.append(report.step)
                    if len(in_a_row) >= config.guard.max_skipped:
                        return Ending("unstable", done, position, tuple(losses), skipped, tuple(in_a_row))
                position = self._between(done, position)
                if position.finished is not None:
                    break
        tools.saving.finish()
        if tools.previewer is not None:
            tools.watchdog.beat(done, "writing samples")
            tools.previewer.close()
        self._show_samples()
        tools.recorder.ends(done)
        return Ending("finished", done, position, tuple(losses), skipped)

    def _is_asked(self) -> bool:
        return self._tools.stop.requested is not None

    def _inputs(self, begin: int, position: Position) -> Generator[StepInput | _PassedOver, None, None]:
        """Inputs of the steps that are left, in order; `_PassedOver` for those that are left out."""
        end = position.first_step + self._config.train.steps
        out = [step for step in position.passed_over if begin <= step < end]
        depth = self._config.data.prefetch_packs
        owner = self._tools.owner
        for step in [*out, end]:
            if begin < step:
                for given in self._parts.feed.steps(begin, step, depth):
                    self._tools.watchdog.beat(given.step + 1, "waiting for the others")
                    if owner is not None:
                        owner.check()
                    yield given
            if step < end:
                yield _PassedOver(step)
            begin = step + 1

    def _step(self, given: StepInput, begin: int, limit: float | None) -> StepReport:
        """One step, checked, timed and recorded."""
        tools, config = self._tools, self._config
        if given.step == begin or given.step % config.train.check_inputs_every == 0:
            check_same_input(given, self._parts.mesh, tools.trainer.device)
        tools.watchdog.beat(given.step + 1, "training")
        with tools.stragglers.working("compute"):
            report, suspects = tools.trainer.step(given, limit)
        for straggler in tools.stragglers.step():
            tools.recorder.fault(report.step + 1, "straggler", **asdict(straggler))
        if not report.applied:
            tools.recorder.skipped(report, suspects)
        blocked = tools.saving.settle()  # known now: the update waited for it
        numbers = self._numbers(given, report)
        tools.recorder.step(report, numbers if blocked is None else numbers | {"saved_blocked_seconds": blocked})
        tools.watchdog.beat(given.step + 1, "reading")
        return report

    def _numbers(self, given: StepInput, report: StepReport) -> dict[str, Any]:
        config = self._config
        flops = train_flops(self._shape, given.segment_tokens)
        result = StepResult(report.loss, report.grad_norm, given.tokens, flops)
        rates = self._tools.progress.step(report.step + 1, result)
        return {
            "epoch": self._parts.feed.plan.epoch_of(report.step),
            "tokens": given.tokens,
            "fill": given.tokens / (config.train.packs_per_step * config.data.tokens_per_pack),
            "tokens_per_second": rates.tokens_per_second,
            "seconds": rates.seconds_per_step,
            "mfu": rates.mfu,
            "flops": flops,
            **({} if given.range_share is None else {"sigma_range_share": given.range_share}),
            **self._parts.feed.stream_metrics(),
        }

    def _between(self, done: int, position: Position) -> Position:
        """What is due after a step: validation, samples, the stage's end, a checkpoint."""
        tools, config = self._tools, self._config
        loss = None
        tools.saving.settle()  # a step that was skipped made no update
        if tools.validator is not None and config.validation.every and done % config.validation.every == 0:
            tools.watchdog.beat(done, "validating")
            measured = tools.validator.measure()
            tools.recorder.validated(done, measured.row())
            loss = measured.loss if measured.loss_ema is None else measured.loss_ema
            position = position.validated(loss, config.exit.plateau_share)
        every = config.validation.samples_every
        if tools.previewer is not None and every and done % every == 0:
            tools.watchdog.beat(done, "sampling")
            tools.previewer.draw(done)
        self._show_samples()
        reason = reached_exit(config.exit, config.train.steps, position, done)
        if reason is not None:
            next_visit = self._parts.feed.plan.visits_reached(done)
            position = replace(position, finished=reason, next_visit=next_visit)
        if reason is not None or loss is not None or tools.saving.is_due(done):
            self._save_if_due(done, position, loss)
        else:
            tools.saving.report()
        return position

    def _show_samples(self) -> None:
        """Record the samples whose files were written since the last call."""
        if self._tools.previewer is not None:
            for shown in self._tools.previewer.written():
                self._tools.recorder.samples(shown)

    def _save_if_due(self, done: int, position: Position, loss: float | None) -> None:
        if position.finished is None and not self._tools.saving.is_due(done):
            return
        self._tools.watchdog.beat(done, SAVING)
        self._tools.saving.save(done, position, loss)

    def _stopped(self, done: int, position: Position, losses: Sequence[float], skipped: int) -> Ending:
        tools = self._tools
        tools.watchdog.beat(done, SAVING)
        tools.saving.save(done, position)
        tools.saving.finish()
        signal = tools.stop.requested
        tools.recorder.fault(done, "signal", reason=f"asked to stop by {signal or 'another rank'}")
        return Ending("stopped", done, position, tuple(losses), skipped)

    def _spike_limit(self, position: Position) -> SpikeLimit | None:
        guard = self._config.guard
        if guard.spike_factor is None:
            return None
        return SpikeLimit(guard.spike_factor, guard.spike_window, position.losses)


def mean_loss(losses: Sequence[float]) -> float:
    """Mean of the finite ones; not a number where there are none."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan
