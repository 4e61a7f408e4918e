"""Micro-batches of this rank, step by step, made ahead of time in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import LatentDataset
from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.step_plan import WHOLE_RUN, PlanSettings, StagePlace, StepPlan, rank_share
from megavideo.data.storage.local import LocalStorage
from megavideo.data.stream.batch import assemble
from megavideo.data.stream.counts import StreamRates
from megavideo.data.stream.shards import ShardReader
from megavideo.data.table.open import cache_folder, open_selected
from megavideo.data.table.selection import selection_of
from megavideo.diffusion.objective import Objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import range_share
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.loss.term_labels import Windows, choose_windows
from megavideo.train.packs.look_ahead import Packs, planned_ahead
from megavideo.train.packs.noising import TrainBatch, choose_texts, drop_texts, noise_pack, num_loss_tokens, tell_given
from megavideo.types import PackSegment


@dataclass(frozen=True)
class StepInput:
    """One rank's share of a global step.

    `loss_tokens` and `tokens` count the whole step over all ranks: those in the loss, and all real ones.
    `segment_tokens` are the lengths of every segment of the step, from which FLOPs are counted. `range_share` is the
    share of the unrestricted draw of levels that falls in `diffusion.sigma_range`, over the step's segments; None
    without such a range.
    """

    step: int
    batches: tuple[TrainBatch, ...]
    loss_tokens: int
    tokens: int
    segment_tokens: tuple[tuple[int, int], ...]
    range_share: float | None = None


def table_cache(config: TrainRun) -> Path:
    """Where the tables of a run's samples are kept: with the shards of a store, else beside the run folders."""
    return cache_folder(config.output, config.data.cache)


def shard_cache(config: TrainRun, dataset: LatentDataset) -> Path | None:
    """Where shards are kept that come from a store; None where they are read in place."""
    return None if isinstance(dataset.storage, LocalStorage) else table_cache(config)


class Feed:
    """Makes the inputs of steps from the plan, the shards and the objective; pure in (config, dataset, step).

    `place` is where the stage that `config` describes stands in its run. `stage` makes a batch ready for the device, in
    the thread that reads ahead. `selected` is what is trained on: the table of samples (`selected.table`), those held
    out, and what each rule left out.
    """

    def __init__(
        self,
        config: TrainRun,
        dataset: LatentDataset,
        reader: ShardReader,
        objective: Objective,
        mesh: ProcessMesh,
        place: StagePlace = WHOLE_RUN,
        stage: Callable[[TrainBatch], TrainBatch] | None = None,
    ) -> None:
        null_text = torch.from_numpy(dataset.null_text.astype("float32"))
        self._config = config
        self._reader = reader
        self._stream_rates = StreamRates(reader.counts)
        self._objective = objective
        self._mesh = mesh
        self._stage = stage
        self._null_text = null_text
        data = config.data
        most = data.max_segments or min(data.tokens_per_pack, data.text_tokens_per_pack)
        limits = PackLimits(data.tokens_per_pack, data.text_tokens_per_pack, most, null_text.shape[0])
        self.selected = open_selected(dataset, tuple(data.sources), selection_of(config), table_cache(config))
        if mesh.rank == 0:
            self.selected.left_out.log()
        self.plan = StepPlan(
            self.selected.table,
            PlanSettings(
                config.model.patch,
                limits,
                config.train.packs_per_step,
                config.train.seed,
                place.stage,
                data.sources,
                place.first_step,
                place.first_visit,
            ),
        )
        self._limits = limits if data.max_segments else replace(limits, segments=self.plan.max_segments)

    def step(self, step: int) -> StepInput:
        """This rank's input of one global step."""
        return self._input(step, self.plan.step(step))

    def _mine(self, packs: Packs) -> Packs:
        return rank_share(packs, self._mesh.dp_rank, self._mesh.dp)

    def _input(self, step: int, packs: Packs) -> StepInput:
        diffusion, seed = self._config.diffusion, self._config.train.seed
        loss_tokens = num_loss_tokens(packs, diffusion, seed, self._config.model)
        segments = [segment for pack in packs for segment in pack]
        shares = [range_share(diffusion, s.grid) for s in segments] if diffusion.sigma_range else None
        windows = choose_windows(packs, diffusion, self._config.model.patch[0], seed, loss_tokens)
        return StepInput(
            step=step,
            batches=tuple(self._batch(pack, windows) for pack in self._mine(packs)),
            loss_tokens=loss_tokens,
            tokens=sum(s.grid.num_tokens for s in segments),
            segment_tokens=tuple((s.grid.num_tokens, s.text_tokens) for s in segments),
            range_share=None if shares is None else fmean(shares),
        )

    def steps(self, begin: int, end: int, depth: int) -> Generator[StepInput, None, None]:
        """Inputs of steps [begin, end), up to `depth` of them made ahead in a thread, whose error is raised here.

        Closing the generator ends the thread.
        """
        ready: queue.Queue[StepInput | BaseException] = queue.Queue(maxsize=depth)
        stop = threading.Event()

        def put(item: StepInput | BaseException) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for step, packs in planned_ahead(self.plan.step, self._mine, self._reader, begin, end):
                    if not put(self._input(step, packs)):
                        return
            except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
                put(error)

        thread = threading.Thread(target=work, name="megavideo-feed", daemon=True)
        with self._reader.working():
            thread.start()
            try:
                for _ in range(begin, end):
                    item = ready.get()
                    if isinstance(item, BaseException):
                        raise item
                    yield item
            finally:
                stop.set()
                self._reader.stop()
                thread.join()

    def stream_metrics(self) -> dict[str, float]:
        """Numbers of this rank's stream since they were last asked for."""
        return self._stream_rates.metrics()

    def _batch(self, segments: tuple[PackSegment, ...], windows: Windows) -> TrainBatch:
        config = self._config
        samples = [self._reader.read(s.index, s.sample_id) for s in segments]
        samples = choose_texts(segments, samples, config.train.seed)
        samples = drop_texts(segments, samples, self._null_text, config.diffusion.text_dropout, config.train.seed)
        pack = assemble(segments, samples, config.model.patch, self._limits)
        keys = [SampleKey(config.train.seed, s.sample_id, s.visit) for s in segments]
        pack = tell_given(pack, segments, samples, keys, config.diffusion, config.model)
        batch = noise_pack(pack, segments, config.diffusion, self._objective, config.train.seed, windows=windows)
        return batch if self._stage is None else self._stage(batch)
