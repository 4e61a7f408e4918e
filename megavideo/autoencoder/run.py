"""`megavideo train-vae`: one run, from its folder's newest checkpoint or from the start, to its report."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from megavideo.autoencoder.corpus import BatchReader, Corpus, Draw, HeldOutClip, corpus_name, open_corpus
from megavideo.autoencoder.evaluate import averaged_weights, evaluate, mean_of
from megavideo.autoencoder.features import PerceptualDistance
from megavideo.autoencoder.model import TrainedAutoencoder, build_model
from megavideo.autoencoder.quality import Quality
from megavideo.autoencoder.report import write_report
from megavideo.autoencoder.state import VAE_FOLDER, load_newest_state, save_state, write_folder
from megavideo.autoencoder.trainer import VaeStep, VaeTrainer, is_finite
from megavideo.checkpoint.agreement import entered_by_rank_0
from megavideo.config.dump import read_config, to_yaml
from megavideo.config.schema.vae import TrainVaeRun
from megavideo.data.storage.owners import Claim, Ownership, owning
from megavideo.encoders.encode.clips import to_video
from megavideo.errors import ConfigError, NumericsError
from megavideo.observe.metrics import MetricsWriter
from megavideo.observe.progress import eta_seconds, format_seconds
from megavideo.observe.run_folder import RunFolder, create_run_folder
from megavideo.parallel.processes.distributed import Launch, process_group

_STATISTICS_CLIPS = 64
_FIXED = ("model", "loss", "data")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainVaeReport:
    """What a run came to. `report` is the page, and from `psnr_db` on there are means over held-out clips.

    `vae` is the diffusers folder with the weights: the run's, or with `train.steps=0` the one that was measured.
    `skipped` are the steps of this start that were not finite.
    """

    run: str
    vae: str
    report: str
    steps: int
    resumed_at: int
    parameters: int
    held_out: int
    psnr_db: float
    ssim: float
    perceptual: float
    features: str
    flicker: float
    skipped: int


def train_vae(config: TrainVaeRun) -> TrainVaeReport:
    """Train, alone or as one of the processes that torchrun or srun started, and report on held-out clips.

    Ends with a saved checkpoint and the averaged weights as a folder of diffusers. Raises MegavideoError of the kind
    that fits: settings, data, checkpoint or numerics; OutputInUse where another start is at work in the run folder.
    """
    place = RunFolder(Path(config.output) / config.name)
    if place.root.exists() and not place.root.is_dir():
        raise ConfigError("output", config.output, f"{place.root} is a file", "name a folder")
    claim = Claim("train-vae", "name= another run")
    with process_group() as launch, entered_by_rank_0(lambda: owning(place.root, claim)) as owner:
        return _Run(config, launch, place, owner).finish()


class _Run:
    """All that a run holds."""

    def __init__(self, config: TrainVaeRun, launch: Launch, place: RunFolder, owner: Ownership | None) -> None:
        self._config = config
        self._first = launch.rank == 0
        self._place = place
        self._owner = owner
        if self._place.config.exists():
            _check_same_run(config, self._place.config)
        torch.manual_seed(config.train.seed)
        model = build_model(config.model)
        _check_sizes(config, model)
        self._corpus = open_corpus(config.data, config.train.seed, model.time_ratio, model.space_ratio)
        self._reader = BatchReader(self._corpus, config.data, config.train.seed, launch.rank, launch.world_size)
        self._held_out: list[HeldOutClip] = list(self._corpus.held_out())
        distance = PerceptualDistance(config.loss.perceptual_weights)
        self._distance = distance
        self._trainer = VaeTrainer(config, model, distance, launch.device)
        self._skipped = 0
        dist.barrier()  # every rank has read the old settings before the first one replaces them
        if self._first:
            create_run_folder(self._place.root, to_yaml(config), sys.argv)
        dist.barrier()
        self._begin = load_newest_state(self._place.checkpoints, self._trainer)
        if self._begin > config.train.steps:
            rule = f"the run in {self._place.root} has made {self._begin} steps"
            remedy = f"take train.steps={self._begin} to report on it, or name= another run"
            raise ConfigError("train.steps", config.train.steps, rule, remedy)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self._parameters = parameters
        _log.info(
            "train-vae: %.2f M parameters, %s, from step %d of %d, on %d processes",
            parameters / 1e6, model.family.class_name, self._begin, config.train.steps, launch.world_size,
        )  # fmt: skip

    def finish(self) -> TrainVaeReport:
        """Train to the end and report."""
        config, begin = self._config, self._begin
        metrics = MetricsWriter(self._place.metrics, begin) if self._first else None
        start = time.monotonic()
        try:
            quality = self._train(metrics)
        finally:
            if metrics is not None:
                metrics.close()
        if quality is None:
            quality = self._evaluate()[1]
        report = ""
        with averaged_weights(self._trainer) as model:
            results = evaluate(model, self._held_out, self._distance)
            if self._first:
                facts = self._facts(time.monotonic() - start)
                report = str(write_report(self._place.root, results, self._held_out, model, facts))
        dist.barrier()
        return TrainVaeReport(
            run=str(self._place.root), report=report, steps=config.train.steps,
            vae=str(self._place.root / VAE_FOLDER) if config.train.steps else str(config.model.path),
            resumed_at=begin, parameters=self._parameters, held_out=len(self._held_out), **asdict(mean_of(results)),
            features=self._distance.name, skipped=self._skipped,
        )  # fmt: skip

    def _train(self, metrics: MetricsWriter | None) -> Quality | None:
        """All steps that are left; the quality after the last, None where there was none."""
        config, trainer, quality, in_a_row = self._config.train, self._trainer, None, 0
        trainer.model.train()
        last, seconds = time.monotonic(), []
        with self._reader.steps(self._begin, config.steps) as batches:
            for number, batch in enumerate(batches, start=self._begin):
                step = trainer.step(number, batch)
                done = number + 1
                in_a_row = 0 if is_finite(step) else in_a_row + 1
                self._skipped += in_a_row > 0
                if in_a_row >= config.max_skipped:
                    raise NumericsError(
                        f"{in_a_row} steps in a row, the last of them {done}, had a non-finite loss or gradient. "
                        "Remedy: lower optim.lr, or loss.adversarial; the last checkpoint is whole"
                    )
                now = time.monotonic()
                seconds.append(now - last)
                last = now
                values = {**step.values, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate,
                          "skipped": not step.applied, "seconds": seconds[-1]}  # fmt: skip
                if done % config.evaluate_every == 0 or done == config.steps:
                    quality = self._evaluate()[1]
                    values |= {"psnr_db": quality.psnr_db, "ssim": quality.ssim, "flicker": quality.flicker,
                               "eval_perceptual": quality.perceptual}  # fmt: skip
                    last = time.monotonic()
                if metrics is not None:
                    metrics.write(done, values)
                    if done % config.log_every == 0 or done == config.steps:
                        _tell(done, config.steps, step, quality, seconds)
                if done % config.checkpoint_every == 0 or done == config.steps:
                    self._save(done)
                    last = time.monotonic()
        return quality

    def _evaluate(self) -> tuple[int, Quality]:
        with averaged_weights(self._trainer) as model:
            results = evaluate(model, self._held_out, self._distance)
        return len(results), mean_of(results)

    def _save(self, step: int) -> None:
        """The averaged weights with their statistics as a folder of diffusers, and the state for going on.

        In this order: a state after the last step is what tells the next start that nothing is left to write.
        """
        if self._owner is not None:
            self._owner.check()
        if self._first:
            with averaged_weights(self._trainer) as model:
                model.keep_statistics(self._statistics_videos(self._corpus))
                write_folder(self._place.root / VAE_FOLDER, lambda place: model.model.save_pretrained(place))
            save_state(self._place.checkpoints, step, self._trainer, self._config.train.keep_checkpoints)
            _log.info("saved %s", self._place.root / VAE_FOLDER)
        dist.barrier()

    def _statistics_videos(self, corpus: Corpus) -> list[torch.Tensor]:
        """Training squares on which the latents' statistics are measured, always the same."""
        data = self._config.data
        kind, frames = ("clips", data.frames) if data.clips else ("images", 1)
        draws = [Draw(kind, -1, place) for place in range(_STATISTICS_CLIPS)]
        return [to_video(torch.from_numpy(corpus.read(draw, frames))) for draw in draws]

    def _facts(self, seconds: float) -> dict[str, str]:
        config = self._config
        terms = [f"L1 x {config.loss.l1:g}", f"L2 x {config.loss.l2:g}", f"KL x {config.loss.kl:g}"]
        terms += [f"perceptual x {config.loss.perceptual:g}"] if config.loss.perceptual else []
        terms += [f"adversarial x {config.loss.adversarial:g} from step {config.loss.adversarial_start}"
                  ] if config.loss.adversarial else []  # fmt: skip
        model = self._trainer.model
        return {
            "class": model.family.class_name,
            "parameters": f"{self._parameters / 1e6:.2f} M",
            "ratios": f"{model.time_ratio}x{model.space_ratio}x{model.space_ratio}, {model.latent_channels} channels",
            "trained on": f"{corpus_name(config.data)}: {config.data.clips} clips of {config.data.frames} frames and "
            f"{config.data.images} images of {config.data.size} pixels a step",
            "loss": ", ".join(terms),
            "steps": str(config.train.steps),
            "perceptual features": self._distance.name,
            "seconds of this start": f"{seconds:.0f}",
        }


def _check_sizes(config: TrainVaeRun, model: TrainedAutoencoder) -> None:
    """A loaded model's ratios must divide what it is trained on; a new one's are checked with the settings."""
    data = config.data
    if data.size % model.space_ratio:
        rule = f"must divide by {model.space_ratio}, the space ratio of {model.family.class_name}"
        raise ConfigError("data.size", data.size, rule, f"take data.size={model.space_ratio * 4}")
    if (data.frames - 1) % model.time_ratio:
        rule = f"must be 1 + {model.time_ratio}n for {model.family.class_name}"
        raise ConfigError("data.frames", data.frames, rule, f"take data.frames={1 + 2 * model.time_ratio}")


def _check_same_run(config: TrainVaeRun, path: Path) -> None:
    before = read_config(TrainVaeRun, path)
    for name in _FIXED:
        old, new = asdict(before)[name], asdict(config)[name]
        for key in new:
            if old[key] != new[key]:
                rule = f"the run in {path.parent} was started with {old[key]!r}"
                raise ConfigError(f"{name}.{key}", new[key], rule, "keep it to go on, or name= another run")


def _tell(done: int, steps: int, step: VaeStep, quality: Quality | None, seconds: list[float]) -> None:
    terms = "  ".join(f"{name} {value:.4f}" for name, value in step.values.items())
    held_out = "" if quality is None else f"  held out {quality.psnr_db:.2f} dB"
    eta = format_seconds(eta_seconds(steps - done, seconds[-50:]))
    _log.info(
        "step %*d/%d  %s  grad %.3f%s  ETA %s", len(str(steps)), done, steps, terms, step.grad_norm, held_out, eta
    )
