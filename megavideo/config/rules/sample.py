"""Cross-field rules of `megavideo sample` that need neither the run nor the prompts."""

from __future__ import annotations

from pathlib import PurePath

from megavideo.config.given import GivenFiles, mode_of
from megavideo.config.schema.sample import SampleRun
from megavideo.errors import ConfigError

OTHER_FORMATS = frozenset({".gif", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".png", ".jpg", ".jpeg", ".webp"})


def out_is_mp4_or_folder(cfg: SampleRun) -> None:
    """Samples are written as mp4."""
    suffix = PurePath(cfg.out).suffix.lower()
    if suffix in OTHER_FORMATS:
        remedy = f"take out={PurePath(cfg.out).with_suffix('.mp4')}, or a folder"
        raise ConfigError("out", cfg.out, f"samples are written as .mp4, not {suffix}", remedy)


def out_is_local(cfg: SampleRun) -> None:
    """Pictures go to the local disk."""
    if "://" in cfg.out:
        raise ConfigError("out", cfg.out, "must be a path, not an address", "take a local file or folder")


def ddim_takes_no_shift(cfg: SampleRun) -> None:
    """DDIM walks DDPM's noise schedule, which has no flow time to shift."""
    if cfg.scheduler == "ddim" and cfg.shift is not None:
        raise ConfigError("shift", cfg.shift, "has no effect with scheduler=ddim", "drop it, or take scheduler=euler")


def given_files_make_a_task(cfg: SampleRun) -> None:
    """Files, mode and number of frames fit each other; a list of prompts may give files of its own."""
    files = GivenFiles(cfg.image, cfg.last_image, cfg.video, cfg.mask)
    if files != GivenFiles():
        mode_of(files, cfg)


def experts_have_a_boundary(cfg: SampleRun) -> None:
    """Two experts need the noise level at which one follows the other, which one alone has not."""
    if cfg.low_ckpt is not None and cfg.boundary is None:
        raise ConfigError(
            "boundary", None, "low_ckpt needs it", "add boundary=0.875, or where the experts' ranges meet"
        )
    if cfg.low_ckpt is None and cfg.boundary is not None:
        raise ConfigError("boundary", cfg.boundary, "has no effect without low_ckpt", "add low_ckpt=RUN, or drop it")


SAMPLE_RULES = (
    out_is_mp4_or_folder,
    out_is_local,
    ddim_takes_no_shift,
    given_files_make_a_task,
    experts_have_a_boundary,
)
