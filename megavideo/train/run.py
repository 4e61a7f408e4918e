"""`megavideo train`: the stages of a run, from where its folder stands to the end of the last one."""

from __future__ import annotations

import gc
import logging
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from megavideo.checkpoint.agreement import entered_by_rank_0
from megavideo.checkpoint.base import check_base
from megavideo.checkpoint.restore import restore, restore_weights
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.config.curriculum import Stage, stages_of
from megavideo.config.layout import parse_layout
from megavideo.config.schema.train import TrainRun
from megavideo.data.plan.step_plan import StagePlace
from megavideo.data.plan.visits import seen_again
from megavideo.data.storage.owners import Claim, Ownership, owning
from megavideo.errors import StopRequested
from megavideo.interop.start_weights import open_start_weights
from megavideo.observe.faults import FaultLog
from megavideo.observe.progress import TrainingProgress
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import owned_fragments
from megavideo.parallel.processes.distributed import Launch, own_store, process_group
from megavideo.parallel.processes.groups import destroy_groups
from megavideo.train.build import Parts, build_parts
from megavideo.train.health.peak import peak_flops_per_second
from megavideo.train.health.signals import StopRequest
from megavideo.train.health.stragglers import Stragglers
from megavideo.train.health.watchdog import SAVING, Hang, Watchdog, collective_timeout
from megavideo.train.loop import Ending, Loop, Tools, mean_loss
from megavideo.train.position import Position, read_position
from megavideo.train.record import FAULTS_FILE, Recorder, host
from megavideo.train.resume import newest_position
from megavideo.train.rollback import in_stage_before, nothing_before, skipped_steps, too_often
from megavideo.train.saving import Saving
from megavideo.train.setup import RunPlace, build_previewer, build_validator, checkpoint_store
from megavideo.train.stages import next_stage
from megavideo.train.step import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainReport:
    """What a run came to. Losses are means over the first and last tenth of the steps that ran in this start."""

    run: str
    rank: int
    steps: int
    resumed_at: int
    first_loss: float
    last_loss: float
    skipped: int
    rollbacks: int
    stages: tuple[str, ...]
    parameters: int


def train(config: TrainRun) -> TrainReport:
    """Train, alone or as one of the processes that torchrun or srun started. Ends with a saved checkpoint.

    Raises MegavideoError of the kind that fits: settings, data, checkpoint, topology or numerics; StopRequested, once
    the run is saved, where SIGTERM or SIGUSR1 asked it to end; OutputInUse where another start works in the run folder.
    """
    stages = stages_of(config)
    layouts = [parse_layout(stage.config.layout) for stage in stages]
    place = RunPlace.of(stages[0].config)
    claim = Claim("train", "name= another run")
    with (
        process_group(collective_timeout(config.guard.hang_seconds), layouts) as launch,
        StopRequest() as stop,
        entered_by_rank_0(lambda: owning(place.folder.root, claim)) as owner,
    ):
        return _Run(stages, launch, stop, place, owner).to_end()


@dataclass
class _Totals:
    """What a start did so far."""

    resumed_at: int | None = None
    skipped: int = 0
    rollbacks: int = 0
    parameters: int = 0
    losses: list[float] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)


class _Run:
    """The stages of one start."""

    def __init__(
        self, stages: tuple[Stage, ...], launch: Launch, stop: StopRequest, place: RunPlace, owner: Ownership | None
    ) -> None:
        self._stages = stages
        self._launch = launch
        self._stop = stop
        self._place = place
        self._owner = owner
        self._store = checkpoint_store(stages[0].config)
        self._totals = _Totals()
        self._peak: float | None = None

    def to_end(self) -> TrainReport:
        """Train what is left of the stages."""
        while True:
            step, position = newest_position(self._place.folder.checkpoints, self._store)
            found = next_stage(self._stages, position, step)
            if found is None:
                trained = self._totals.resumed_at is not None
                if trained or position is None or self._is_whole(step, position):
                    return self._report(step)
            else:
                self._stage(*found)
            _release()

    def _is_whole(self, step: int, position: Position) -> bool:
        """Whether the checkpoint of `step`, which says that nothing is left to do, can be read by this run.

        Raises MegavideoError where settings and processes do not fit the run, as if there were steps to make.
        """
        stage = next((stage for stage in self._stages if stage.number == position.number), self._stages[-1])
        parts = self._parts(stage, position)
        self._totals.parameters = parts.engine.num_parameters()
        whole = self._restored(parts) == (step, position)
        parts.engine.close()
        return whole

    def _parts(self, stage: Stage, position: Position) -> Parts:
        self._place.check(stage)
        place = StagePlace(position.number, position.first_step, position.first_visit)
        return build_parts(stage.config, self._launch, self._place.version(stage.config), place)

    def _stage(self, stage: Stage, position: Position) -> None:
        """One stage to its end, if it is that of the checkpoint that can be read."""
        parts = self._parts(stage, position)
        self._place.prepare(stage, self._stages, parts)
        begin, restored = self._restored(parts)
        after = next_stage(self._stages, restored, begin)
        if after is not None and (after[0].number, after[1].first_step) == (stage.number, position.first_step):
            self._totals.parameters = parts.engine.num_parameters()
            self._announce(stage, parts, begin)
            self._train(stage, parts, begin, after[1])
        # else the newest checkpoint could not be read, and the one before it is of another stage
        parts.engine.close()

    def _restored(self, parts: Parts, at_most: int | None = None) -> tuple[int, Position | None]:
        """Steps done and position of the newest whole checkpoint, which the engine now holds."""
        config = self._stages[0].config
        folder, base = self._place.folder.checkpoints, parts.base
        manifest = restore(
            folder, parts.engine, self._store, at_most=at_most, keep_fetched=config.checkpoint.through_folder
        )
        source = config.init_from
        if manifest is None and source is not None and at_most is None:
            given = restore_weights(lambda: open_start_weights(source, config), parts.engine)
            check_base(base, given.base, source)
        if manifest is None:
            return 0, None
        check_base(base, manifest.base, str(folder))
        return manifest.step, read_position(manifest.progress, folder)

    def _train(self, stage: Stage, parts: Parts, begin: int, position: Position) -> None:
        """Loop over the stage, going back to a checkpoint where steps in a row fail."""
        config, launch, totals = stage.config, self._launch, self._totals
        if totals.resumed_at is None:
            totals.resumed_at = begin
        group = SaveGroup.of_run()
        validator = build_validator(config, parts, launch)
        previewer = build_previewer(config, parts, self._place.folder, launch)
        checkpointer = Checkpointer(config.checkpoint, self._place.folder.checkpoints, group, self._store)
        watchdog = self._watchdog(stage, checkpointer)
        restarted = begin > 0 and totals.losses == []
        drawing = nullcontext() if previewer is None else closing(previewer)
        _settle_before_updates(parts.engine, checkpointer)
        with checkpointer, drawing, watchdog:
            checkpointer.reserve(owned_fragments(parts.engine))
            while True:
                recorder = Recorder(stage, self._place.folder, begin, launch.rank == 0)
                try:
                    recorder.begins(position, parts.layout.format())
                    if restarted:
                        recorder.fault(begin, "restart", host=host(), processes=launch.world_size)
                    tools = Tools(
                        trainer=self._trainer(config, parts, position),
                        recorder=recorder,
                        saving=Saving(stage, parts, checkpointer, recorder, begin),
                        progress=self._progress(config, parts, begin, position),
                        watchdog=watchdog,
                        stop=self._stop,
                        stragglers=Stragglers(config.guard, launch, parts.mesh.groups("tp", "ulysses", "ring", "dp")),
                        validator=validator,
                        previewer=previewer,
                        owner=self._owner,
                    )
                    ending = Loop(stage, parts, tools).run(begin, position)
                    self._count(ending, stage)
                    if ending.reason == "unstable":
                        watchdog.beat(ending.step, SAVING)
                        checkpointer.wait()
                        watchdog.beat(ending.step, "going back")
                        begin, position = self._rolled_back(parts, ending, config)
                        recorder.fault(
                            ending.step, "rollback", back_to=begin, passed_over=list(ending.unstable), host=host()
                        )
                finally:
                    recorder.close()
                if ending.reason != "unstable":
                    break
                restarted = False
        if ending.reason == "stopped":
            raise StopRequested(
                f"{self._place.folder.root}: asked to stop, and saved after step {ending.step}. Remedy: the same "
                "command goes on from there"
            )

    def _rolled_back(self, parts: Parts, ending: Ending, config: TrainRun) -> tuple[int, Position]:
        """The engine as it was before the steps that failed, and where that is."""
        bad, folder = ending.unstable, self._place.folder
        if ending.position.rollbacks >= config.guard.max_rollbacks:
            raise too_often(folder.root, bad, ending.position.rollbacks, config.guard)
        begin, restored = self._restored(parts, at_most=bad[0])
        if restored is None:
            newest, _ = newest_position(folder.checkpoints, self._store)
            raise nothing_before(folder.root, bad, newest, config)
        if restored.number == ending.position.number:
            restored = replace(restored, finished=None)
        elif restored.finished is None:
            raise in_stage_before(folder.root, bad, begin, restored)
        else:  # the end of the stage before
            number, name = ending.position.number, ending.position.stage
            restored = Position(name, number, first_step=begin, first_visit=restored.next_visit)
        # the checkpoint may be from before an earlier rollback
        known = replace(restored, passed_over=ending.position.passed_over, rollbacks=ending.position.rollbacks)
        position = known.rolled_back(bad)
        self._totals.rollbacks += 1
        _log.warning(
            "%s. Back to step %d; the data of these steps is passed over", skipped_steps(folder.root, bad), begin
        )
        return begin, position

    def _trainer(self, config: TrainRun, parts: Parts, position: Position) -> Trainer:
        schedule = partial(learning_rate, config.optim, num_steps=config.train.steps)
        first = position.first_step
        return Trainer(parts.engine, parts.mesh, self._launch.device, lambda step: schedule(step - first))

    def _progress(self, config: TrainRun, parts: Parts, begin: int, position: Position) -> TrainingProgress:
        if self._peak is None:
            device, dtype = self._launch.device, parts.engine.dtype
            self._peak = peak_flops_per_second(device, dtype, config.observe.peak_tflops)
        peak = None if self._peak is None else self._peak * self._launch.world_size
        return TrainingProgress(position.first_step + config.train.steps, config.train.log_every, begin, peak)

    def _watchdog(self, stage: Stage, checkpointer: Checkpointer) -> Watchdog:
        launch = self._launch
        faults = self._place.folder.root / FAULTS_FILE

        def report(hang: Hang) -> None:
            FaultLog(faults).write(hang.step, "hang", **hang.fields())

        seconds, store = stage.config.guard.hang_seconds, own_store(f"watchdog-{stage.number}")
        return Watchdog(
            seconds, launch.rank, launch.world_size, host(), report, store, lambda: checkpointer.pieces
        )  # fmt: skip

    def _count(self, ending: Ending, stage: Stage) -> None:
        totals = self._totals
        totals.losses += ending.losses
        totals.skipped += ending.skipped
        if stage.name and stage.name not in totals.stages:
            totals.stages.append(stage.name)

    def _report(self, step: int) -> TrainReport:
        totals = self._totals
        tenth = max(1, len(totals.losses) // 10)
        return TrainReport(
            str(self._place.folder.root), self._launch.rank, step,
            step if totals.resumed_at is None else totals.resumed_at,
            mean_loss(totals.losses[:tenth]), mean_loss(totals.losses[-tenth:]), totals.skipped, totals.rollbacks,
            tuple(totals.stages), totals.parameters,
        )  # fmt: skip

    def _announce(self, stage: Stage, parts: Parts, begin: int) -> None:
        config = stage.config
        name = f"{config.name}, stage {stage.number} of {stage.of}, {stage.name}" if stage.name else config.name
        _log.info(
            "%s: %.2f M parameters, %d samples, %d packs of %d tokens a step, layout %s on %d processes, from step %d",
            name, self._totals.parameters / 1e6, len(parts.feed.selected.table), config.train.packs_per_step,
            config.data.tokens_per_pack, config.layout, self._launch.world_size, begin,
        )  # fmt: skip
        plan, samples = parts.feed.plan, len(parts.feed.selected.table) - parts.feed.plan.dropped.count
        again = seen_again(plan, samples, config.train.packs_per_step, "train.packs_per_step")
        if again is not None and self._launch.rank == 0:
            _log.warning("%s", again)


def _release() -> None:
    """Free what a stage held, so that the next one can take its place under another layout; a collective call."""
    destroy_groups()
    gc.collect()
    torch.cuda.empty_cache()  # does nothing on a CPU


def _settle_before_updates(engine: Engine, checkpointer: Checkpointer) -> None:
    """Have each update wait until the states that it changes are copied."""

    def settle(*_: object) -> None:  # torch would take what it returns for arguments
        checkpointer.settle()

    engine.base_optimizer.register_step_pre_hook(settle)
