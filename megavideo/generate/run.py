"""`megavideo sample`: prompts to mp4 files and a contact sheet."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from megavideo.config.given import GivenFiles
from megavideo.config.schema.sample import SampleRun
from megavideo.data.clips.write_video import write_video
from megavideo.data.patches import token_grid
from megavideo.data.storage.owners import Claim, owning
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import run_shift
from megavideo.encoders.encode.half import as_stored
from megavideo.encoders.pretrained import compute_device
from megavideo.errors import ConfigError, NumericsError
from megavideo.generate.expand import SampledPrompt, expand_prompts
from megavideo.generate.given import GivenReader, files_for_all, read_given
from megavideo.generate.loaded_run import LoadedRun, load_run
from megavideo.generate.rates import played_fps, told_fps
from megavideo.generate.sampler import GivenChannels, GivenTokens, Guidance, Predictor, Prompt, sample_latents
from megavideo.generate.schedulers import build_scheduler
from megavideo.generate.sizes import covering_latent
from megavideo.generate.videos import SHEET_ROWS, sheet_frames, to_pixels, write_sheet
from megavideo.interop.experts import check_pair, check_whole
from megavideo.parallel.processes.distributed import check_precision
from megavideo.types import Grid

_SLUG_LENGTH = 48
_VIDEO_SUFFIX = ".mp4"


@dataclass(frozen=True)
class SampleReport:
    """Files written, in the order of the prompts, which stand beside them as given and as used.

    The contact sheet shows the first 64.
    """

    files: tuple[str, ...]
    prompts: tuple[SampledPrompt, ...]
    contact_sheet: str
    step: int
    weights: str
    seconds: float


def sample(
    cfg: SampleRun, prompts: Sequence[str], negative: str, given: Sequence[GivenFiles | None] | None = None
) -> SampleReport:
    """Sample every prompt at the asked size; each batch is written before the next begins.

    `given` are the files of each prompt; those of the settings belong to prompts that have None. Raises ConfigError,
    CheckpointError or DataError where the run, the sampler, a given file or the place for the results cannot be used,
    and OutputInUse where another process samples to it, and NumericsError where weights or samples are not finite.
    """
    files, sheet = output_files(cfg, prompts)
    claim = Claim("sample", "out= another place", is_file=len(files) == 1)
    with owning(Path(cfg.out), claim):
        own = [one or files_for_all(cfg) for one in given or [None] * len(prompts)]
        return _sample(cfg, prompts, negative, own, (files, sheet))


def _sample(
    cfg: SampleRun,
    prompts: Sequence[str],
    negative: str,
    given: Sequence[GivenFiles],
    places: tuple[Sequence[Path], Path],
) -> SampleReport:
    begin, (files, sheet) = time.monotonic(), places
    device = compute_device()
    precision = cfg.precision or ("bf16" if device.type == "cuda" else "fp32")
    check_precision("precision", precision, device)
    expanded = expand_prompts(cfg.expand, prompts)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    run = _opened(cfg, dtype, device)
    latent = _latent(run, cfg)
    fps = played_fps(cfg.fps, run.rates, latent, run.config.model.fps_conditioning)
    encoders = run.encoders
    reader = GivenReader(cfg, encoders.autoencoder, run.config.model.patch, latent, fps, encoders.image_encoder)
    tokens = {one: read_given(one, cfg, run.config, reader) for one in dict.fromkeys(given)}
    shown: list[tuple[str, np.ndarray]] = []
    done = 0
    for first in range(0, len(prompts), cfg.prompts_per_batch):
        batch = slice(first, first + cfg.prompts_per_batch)
        some = [prompt.used for prompt in expanded[batch]]
        theirs = [tokens[one] for one in given[batch]]
        for video in sample_videos(run, cfg, some, negative, first=first, given=theirs):
            write_video(files[done], video, fps)
            if done < SHEET_ROWS:
                shown.append((prompts[done], sheet_frames(video)))
            done += 1
        logging.getLogger(__name__).info("sampled %d of %d", done, len(prompts))
    write_sheet(sheet, shown)
    written = tuple(str(path) for path in files)
    return SampleReport(written, expanded, str(sheet), run.manifest.step, cfg.weights, time.monotonic() - begin)


def _opened(cfg: SampleRun, dtype: torch.dtype, device: torch.device) -> LoadedRun:
    """The run, with its low expert where there is one."""

    def opened(ckpt: str) -> LoadedRun:
        return load_run(Path(ckpt), weights=cfg.weights, attention=cfg.attention, dtype=dtype, device=device)

    run = opened(cfg.ckpt)
    if cfg.low_ckpt is None or cfg.boundary is None:
        check_whole(run.config)
        return run
    low = opened(cfg.low_ckpt)
    check_pair(run, low, cfg.boundary)
    return replace(run, low=low.model)


def sample_videos(
    run: LoadedRun,
    cfg: SampleRun,
    prompts: Sequence[str],
    negative: str,
    *,
    first: int,
    given: Sequence[GivenTokens | GivenChannels | None] | None = None,
) -> list[np.ndarray]:
    """Videos, uint8 [frames, height, width, 3]; noise follows from the seed and the prompt's place, from `first`.

    Raises NumericsError where what the model or the autoencoder gives is not finite.
    """
    autoencoder, patch = run.encoders.autoencoder, run.config.model.patch
    size, latent = (cfg.frames, cfg.height, cfg.width), _latent(run, cfg)
    grid = token_grid(latent, patch)
    shift = run_shift(run.config.diffusion, grid) if cfg.shift is None else cfg.shift
    scheduler = build_scheduler(cfg.scheduler, run.config.diffusion, shift)
    device = next(run.model.parameters()).device
    scheduler.set_timesteps(cfg.steps, device=device)
    texts = [as_stored(text) for text in run.encoders.text_encoder.encode([*prompts, negative])]
    encoded = [
        Prompt(text, SampleKey(cfg.seed, f"prompt/{first + i}", 0), tokens)
        for i, (text, tokens) in enumerate(zip(texts[:-1], given or [None] * len(prompts), strict=True))
    ]
    guidance = Guidance(cfg.guidance, texts[-1])
    fps = told_fps(cfg.fps, run.fps, latent)
    latents = sample_latents(
        Predictor.of(run.model, run.low, cfg.boundary or 0.0), scheduler, encoded, guidance, grid, patch, fps
    )
    for prompt, x in zip(prompts, latents, strict=True):
        _check_finite(x, prompt, run)
    return [to_pixels(autoencoder.decode(x), size) for x in latents]


def _latent(run: LoadedRun, cfg: SampleRun) -> Grid:
    autoencoder, size = run.encoders.autoencoder, (cfg.frames, cfg.height, cfg.width)
    return covering_latent(size, autoencoder.time_ratio, autoencoder.space_ratio, run.config.model.patch)


def _check_finite(latent: torch.Tensor, prompt: str, run: LoadedRun) -> None:
    if bool(torch.isfinite(latent).all()):
        return
    dtype = next(run.model.parameters()).dtype
    precise = "" if dtype == torch.float32 else "precision=fp32, "
    raise NumericsError(
        f"prompt {prompt!r}: the model of step {run.manifest.step} gives values that are not finite from finite "
        f"weights. Remedy: take {precise}a smaller guidance=, another kernel as attention=, or an earlier checkpoint"
    )


def output_files(cfg: SampleRun, prompts: Sequence[str]) -> tuple[list[Path], Path]:
    """Where the videos and the contact sheet go. Raises ConfigError where `out` does not fit the number of prompts."""
    out = Path(cfg.out)
    for place in out.parents:
        if place.exists() and not place.is_dir():
            raise ConfigError("out", cfg.out, f"{place} is a file, and a folder is needed", "name another place")
    if len(prompts) == 1:
        if out.suffix != _VIDEO_SUFFIX or out.is_dir():
            rule = "one prompt is written to one .mp4 file"
            name = out / "NAME.mp4" if out.is_dir() else f"{out}.mp4"
            raise ConfigError("out", cfg.out, rule, f"give a name that ends in .mp4, as out={name}")
        return [out], out.with_suffix(".png")
    if out.suffix == _VIDEO_SUFFIX or out.is_file():
        raise ConfigError("out", cfg.out, f"{len(prompts)} prompts are written to a folder", "give a folder's name")
    names = [f"{number:03d}_{_slug(prompt)}".rstrip("_") for number, prompt in enumerate(prompts)]
    return [out / f"{name}{_VIDEO_SUFFIX}" for name in names], out / "contact_sheet.png"


def _slug(prompt: str) -> str:
    """Letters and digits of a prompt for a file's name; none of a script that is not Latin."""
    return re.sub("[^a-z0-9]+", "-", prompt.lower())[:_SLUG_LENGTH].strip("-")
