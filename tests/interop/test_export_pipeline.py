"""A run exported as a pipeline: diffusers loads it and generates what `megavideo sample` does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.config.schema.sample import SampleRun
from megavideo.data.patches import patchify, unpatchify
from megavideo.diffusion.randomness import SampleKey
from megavideo.generate.loaded_run import load_run
from megavideo.generate.run import sample_videos
from megavideo.generate.schedulers import build_scheduler
from megavideo.interop.export.pipeline import flow_scheduler
from megavideo.types import Grid
from tests.interop.runs import export, wan_run, with_wan_encoders
from tests.model.packs import make_pack

pytest.importorskip("accelerate", reason="diffusers loads Wan pipelines only with the package accelerate")
FRAMES, HEIGHT, WIDTH = 9, 32, 48
STEPS, GUIDANCE = 6, 4.0
PROMPT, NEGATIVE = "a red square moves right", "a blue circle"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    wan_run(folder, diffusion__shift=3.0)
    with_wan_encoders(folder / "run", folder / "weights")
    return folder / "run"


def our_video(run: Path) -> np.ndarray:
    """uint8 [frames, height, width, 3]."""
    loaded = load_run(run, weights="ema", dtype=torch.float32, device=torch.device("cpu"))
    cfg = SampleRun(ckpt="", out="a.mp4", scheduler="unipc", steps=STEPS, guidance=GUIDANCE, frames=FRAMES,
                    height=HEIGHT, width=WIDTH)  # fmt: skip
    return sample_videos(loaded, cfg, [PROMPT], NEGATIVE, first=0)[0]


def our_noise(channels: int) -> torch.Tensor:
    """The latent [1, C, T, H, W] from which it was sampled."""
    grid = Grid(1 + (FRAMES - 1) // 4, HEIGHT // 16, WIDTH // 16)
    tokens = SampleKey(0, "prompt/0", 0).normal("sample", (grid.num_tokens, 4 * channels))
    return unpatchify(tokens, grid, (1, 2, 2))[None]


def generated(pipe: Any, guidance: float = GUIDANCE, **given: Any) -> np.ndarray:
    """The same of diffusers' pipeline, in 0..255."""
    pipe.set_progress_bar_config(disable=True)
    made = pipe(height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=STEPS, guidance_scale=guidance,
                output_type="np", **given)  # fmt: skip
    video: np.ndarray = made.frames[0] * 255.0
    return video


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    error = float(np.mean((one.astype(float) - two.astype(float)) ** 2))
    return 10 * math.log10(255.0**2 / max(error, 1e-12))


def test_the_pipeline_generates_what_sample_does(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers import WanPipeline

    report = export([f"ckpt={run}", f"out={tmp_path / 'out'}"], capfd)
    pipe = WanPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert pipe.scheduler.config.flow_shift == 3.0
    loaded = load_run(run, weights="ema", dtype=torch.float32, device=torch.device("cpu"))
    prompt, negative = (text[None] for text in loaded.encoders.text_encoder.encode([PROMPT, NEGATIVE]))
    noise = our_noise(loaded.config.model.latent_channels)
    expected = our_video(run)
    video = generated(pipe, prompt_embeds=prompt, negative_prompt_embeds=negative, latents=noise)
    assert video.shape == expected.shape and expected.std() > 10
    print(f"PSNR {psnr(video, expected)}")
    assert psnr(video, expected) >= 40
    other = generated(pipe, prompt_embeds=negative, negative_prompt_embeds=prompt, latents=noise)
    assert psnr(other, expected) < 40  # so that it is not all the same
    # prompts as text are padded by the pipeline, which the report tells of
    padded = generated(pipe, prompt=PROMPT, negative_prompt=NEGATIVE, latents=noise)
    assert np.isfinite(padded).all() and any("prompt_embeds" in note for note in report["notes"])


@pytest.mark.parametrize("how", ["copy", "link"])
def test_the_parts_are_the_datasets_own(how: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [f"parts.{name}={how}" for name in ("vae", "text_encoder", "tokenizer")]
    export([f"ckpt={run}", f"out={tmp_path / 'out'}", "verify=false", *words], capfd)
    weights = run.parent / "weights"
    for part in ("vae", "text_encoder", "tokenizer"):
        for path in (weights / part).iterdir():
            made = tmp_path / "out" / part / path.name
            if (part, path.name) == ("vae", "config.json"):
                continue
            assert made.read_bytes() == path.read_bytes() and made.is_symlink() == (how == "link")
    config = json.loads((tmp_path / "out" / "vae" / "config.json").read_text())
    kept = json.loads((run / "encoders" / "wan.json").read_text())
    assert len(config["latents_mean"]) == config["z_dim"] == 4  # measured, as the weights came without
    assert all(config[name] == kept[name] for name in ("latents_mean", "latents_std"))
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    assert index["expand_timesteps"] is False and index["boundary_ratio"] is None


def test_parts_may_be_left_out(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers import WanPipeline

    words = [f"parts.{name}=none" for name in ("vae", "text_encoder", "tokenizer")]
    report = export([f"ckpt={run}", f"out={tmp_path / 'out'}", "verify=false", *words], capfd)
    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    assert report["notes"][0].endswith("vae=None, text_encoder=None, tokenizer=None")
    pipe = WanPipeline.from_pretrained(tmp_path / "out", local_files_only=True, **absent)
    assert pipe.vae is None and pipe.transformer.config.num_layers == 2


def test_a_run_with_given_frames_is_an_image_pipeline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Given tokens have timestep zero in both: the same numbers for a first frame that is given."""
    from diffusers import WanImageToVideoPipeline, WanPipeline
    from PIL import Image

    config = wan_run(tmp_path, diffusion="flow_conditions", diffusion__shift_by_size="false", diffusion__shift=3.0)
    with_wan_encoders(tmp_path / "run", tmp_path / "weights")
    report = export([f"ckpt={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "verify=false"], capfd)
    assert any("extension, interpolation, inpainting" in note for note in report["notes"])
    pipe = WanImageToVideoPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert pipe.config.expand_timesteps is True and pipe.image_encoder is None
    assert relative_of_given_frames(pipe.transformer, tmp_path / "run") < 1e-5
    text = torch.randn(1, 5, config.model.text_dim, generator=torch.Generator().manual_seed(2))
    video = generated(
        pipe, image=Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 90)), prompt_embeds=text, negative_prompt_embeds=-text
    )
    assert video.shape == (FRAMES, HEIGHT, WIDTH, 3) and np.isfinite(video).all()
    assert WanPipeline.from_pretrained(tmp_path / "out", local_files_only=True).config.expand_timesteps is True


@torch.no_grad()
def relative_of_given_frames(theirs: Any, run: Path) -> float:
    """Of a clip of three latent frames, the first of which is given and has its tokens at timestep zero."""
    ours = load_run(run, weights="ema", dtype=torch.float32, device=torch.device("cpu")).model
    grid = Grid(3, 2, 3)
    latent = torch.randn(ours.config.latent_channels, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    text = torch.randn(5, ours.config.text_dim, generator=torch.Generator().manual_seed(6))
    given = torch.arange(grid.num_tokens) < grid.h * grid.w
    pack = make_pack([grid], [text], [patchify(latent, (1, 2, 2))], [700.0])
    expected = ours(replace(pack, condition_mask=given))
    timesteps = torch.where(given, 0.0, 700.0)[None]
    output = theirs(latent[None], timesteps, text[None], return_dict=False)[0][0]
    return float((patchify(output, (1, 2, 2)) - expected).norm() / expected.norm())


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_the_scheduler_is_that_of_sample(shift: float) -> None:
    ours = build_scheduler("unipc", DiffusionConfig(), shift)
    assert dict(flow_scheduler(shift).config) == dict(ours.config)
