"""`megavideo sample`: prompts to mp4 files and a contact sheet."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megavideo.config.schema.sample import SampleRun
from megavideo.data.clips.write_video import write_video
from megavideo.data.patches import token_grid
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import run_shift
from megavideo.errors import ConfigError
from megavideo.generate.expand import SampledPrompt, expand_prompts
from megavideo.generate.loaded_run import LoadedRun, load_run
from megavideo.generate.sampler import Guidance, Predictor, Prompt, sample_latents
from megavideo.generate.schedulers import build_scheduler
from megavideo.generate.sizes import covering_latent
from megavideo.generate.videos import SHEET_ROWS, sheet_frames, to_pixels, write_sheet
from megavideo.parallel.processes.distributed import check_precision

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


def sample(cfg: SampleRun, prompts: Sequence[str], negative: str) -> SampleReport:
    """Sample every prompt at the asked size; each batch is written before the next begins.

    Raises ConfigError or CheckpointError where the run, the sampler or the place for the results cannot be used.
    """
    begin = time.monotonic()
    files, sheet = output_files(cfg, prompts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = cfg.precision or ("bf16" if device.type == "cuda" else "fp32")
    check_precision("precision", precision, device)
    expanded = expand_prompts(cfg.expand, prompts)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    run = load_run(Path(cfg.ckpt), weights=cfg.weights, dtype=dtype, device=device)
    fps = cfg.fps or run.fps
    shown: list[tuple[str, np.ndarray]] = []
    done = 0
    for first in range(0, len(prompts), cfg.prompts_per_batch):
        some = [prompt.used for prompt in expanded[first : first + cfg.prompts_per_batch]]
        for video in sample_videos(run, cfg, some, negative, first=first):
            write_video(files[done], video, fps)
            if done < SHEET_ROWS:
                shown.append((prompts[done], sheet_frames(video)))
            done += 1
        logging.getLogger(__name__).info("sampled %d of %d", done, len(prompts))
    write_sheet(sheet, shown)
    written = tuple(str(path) for path in files)
    return SampleReport(written, expanded, str(sheet), run.manifest.step, cfg.weights, time.monotonic() - begin)


def sample_videos(
    run: LoadedRun, cfg: SampleRun, prompts: Sequence[str], negative: str, *, first: int
) -> list[np.ndarray]:
    """Videos, uint8 [frames, height, width, 3]; noise follows from the seed and the prompt's place, from `first`."""
    autoencoder, patch = run.encoders.autoencoder, run.config.model.patch
    size = (cfg.frames, cfg.height, cfg.width)
    latent = covering_latent(size, autoencoder.time_ratio, autoencoder.space_ratio, patch)
    grid = token_grid(latent, patch)
    shift = run_shift(run.config.diffusion, grid) if cfg.shift is None else cfg.shift
    scheduler = build_scheduler(cfg.scheduler, run.config.diffusion, shift)
    device = next(run.model.parameters()).device
    scheduler.set_timesteps(cfg.steps, device=device)
    texts = run.encoders.text_encoder.encode([*prompts, negative])
    encoded = [Prompt(text, SampleKey(cfg.seed, f"prompt/{first + i}", 0)) for i, text in enumerate(texts[:-1])]
    guidance = Guidance(cfg.guidance, texts[-1])
    latents = sample_latents(Predictor.of(run.model), scheduler, encoded, guidance, grid, patch, cfg.fps or run.fps)
    return [to_pixels(autoencoder.decode(x), size) for x in latents]


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
