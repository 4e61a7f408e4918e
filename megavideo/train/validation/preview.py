"""Samples of fixed prompts during training, by which a run is looked at: the average's, with the same noise each time.

Shape legend: B prompts, C latent channels, T/H/W latent size.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist

from megavideo.config.schema.train import TrainRun
from megavideo.data.patches import token_grid
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import run_shift
from megavideo.encoders.encode.half import as_stored
from megavideo.encoders.folder import load_text_encoder
from megavideo.errors import DataError, MegavideoError
from megavideo.generate.loaded_run import run_rates
from megavideo.generate.rates import told_fps
from megavideo.generate.sample_files import Drawn, SampleFiles, ShownSamples
from megavideo.generate.sampler import Guidance, Predictor, Prompt, sample_latents
from megavideo.generate.schedulers import build_scheduler
from megavideo.generate.sizes import covering_latent
from megavideo.observe.run_folder import RunFolder
from megavideo.parallel.engines.average import averaged_weights, has_average
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.predict import predict_whole, token_multiple

_SEED = 0  # that of `megavideo sample` where none is given, so that it draws the same from a checkpoint


class Previewer:
    """Draws `validation.prompts` from a live model into `samples/` of the run folder.

    Making one is a collective call, once rank 0 has put encoders and sampling facts into the folder. `ratios` are the
    autoencoder's pixels to a latent's in time and space. Raises a MegavideoError on every rank where the prompts cannot
    be encoded. To be closed before the process ends.
    """

    def __init__(
        self, config: TrainRun, engine: Engine, ratios: tuple[int, int], folder: RunFolder, device: torch.device
    ) -> None:
        asked = config.validation
        self._config = config
        self._engine = engine
        self._device = device
        size = (asked.frames, asked.height, asked.width)
        self._latent = covering_latent(size, *ratios, config.model.patch)
        self._grid = token_grid(self._latent, config.model.patch)
        self._texts, self._fps = _encoded(asked.prompts, folder)
        self._files = None
        if engine.plan.mesh.rank == 0:
            self._files = SampleFiles(folder.samples, folder.encoders, Drawn(asked.prompts, size, self._fps))

    def draw(self, step: int) -> None:
        """Sample every prompt; a collective call of all processes, between two updates, which leaves no trace there.

        Files are written by rank 0 afterwards, while training goes on.
        """
        model, latent = self._config.model, self._latent
        count, dp = len(self._config.validation.prompts), self._engine.plan.mesh.dp
        shape = (count, model.latent_channels, latent.t, latent.h, latent.w)
        drawn = torch.zeros(shape, device=self._device)
        average = averaged_weights(self._engine) if has_average(self._engine) else nullcontext()
        with average:
            for begin in range(0, count, self._prompts_at_once * dp):
                number = [begin + place * dp + self._engine.plan.mesh.dp_rank for place in range(self._prompts_at_once)]
                # a rank that has no prompt left draws one that does not count
                latents = self._sample([i if i < count else 0 for i in number])
                if self._engine.plan.groups.model.rank() == 0:
                    for i, values in zip(number, latents, strict=True):
                        if i < count:
                            drawn[i] = values.to(self._device)
        dist.reduce(drawn, 0)
        if self._files is not None:
            self._files.write(step, list(drawn.cpu()))

    def written(self) -> list[ShownSamples]:
        """What rank 0 wrote since the last call; nothing on other ranks."""
        return [] if self._files is None else self._files.written()

    def close(self) -> None:
        """Wait until all files are written."""
        if self._files is not None:
            self._files.close()

    @property
    def _prompts_at_once(self) -> int:
        """Prompts of one pack: as many as a pack of training holds, each twice for guidance."""
        validation, dp = self._config.validation, self._engine.plan.mesh.dp
        copies = 1 if validation.guidance in (0.0, 1.0) else 2
        fitting = self._config.data.tokens_per_pack // (copies * self._grid.num_tokens)
        return max(1, min(fitting, -(-len(validation.prompts) // dp)))

    def _sample(self, numbers: list[int]) -> list[torch.Tensor]:
        """Latents [C, T, H, W] of prompts, on the CPU; the same on the ranks that train a pack together."""
        config = self._config
        kind = "euler" if config.diffusion.objective == "flow" else "ddim"
        scheduler = build_scheduler(kind, config.diffusion, run_shift(config.diffusion, self._grid))
        scheduler.set_timesteps(config.validation.sample_steps, device=self._device)
        prompts = [Prompt(self._texts[i], SampleKey(_SEED, f"prompt/{i}", 0)) for i in numbers]
        guidance = Guidance(config.validation.guidance, self._texts[-1])
        engine = self._engine
        predictor = Predictor(
            lambda pack: predict_whole(engine, pack), config.model, engine.dtype, self._device,
            token_multiple(engine),
        )  # fmt: skip
        fps = told_fps(None, self._fps, self._latent)
        return sample_latents(predictor, scheduler, prompts, guidance, self._grid, config.model.patch, fps)


def _encoded(prompts: tuple[str, ...], folder: RunFolder) -> tuple[list[torch.Tensor], float]:
    """Encodings [L, text_dim] of the prompts and, last, of the empty one, and frames a second; a collective call.

    Rank 0 alone has the text encoder, and only until this returns.
    """
    told: list[tuple[list[torch.Tensor], float] | str | None] = [None]
    failure: MegavideoError | None = None
    if dist.get_rank() == 0:
        try:
            texts = load_text_encoder(folder.encoders).encode([*prompts, ""])
            told = [([as_stored(text.cpu()) for text in texts], run_rates(folder.root).fps)]
        except MegavideoError as error:
            failure = error
            told = [str(error)]
    dist.broadcast_object_list(told)
    if failure is not None:
        raise failure
    if isinstance(told[0], str):
        raise DataError(f"rank 0 failed: {told[0]}")
    assert told[0] is not None, "rank 0 tells the one or the other"
    return told[0]
