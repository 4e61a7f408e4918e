"""Image-to-video models of Wan 2.2's form, with 36 input channels: diffusers' pipeline and ours make the same video."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from megavideo.checkpoint.read import find_checkpoint
from megavideo.config.given import GivenFiles
from megavideo.config.load import load
from megavideo.config.schema.export import ExportRun
from megavideo.config.schema.import_ import ImportRun
from megavideo.config.schema.sample import SampleRun
from megavideo.data.patches import patchify, unpatchify
from megavideo.diffusion.randomness import SampleKey
from megavideo.errors import ConfigError
from megavideo.generate.given import GivenReader, read_given
from megavideo.generate.loaded_run import LoadedRun, load_run
from megavideo.generate.run import sample_videos
from megavideo.generate.sampler import GivenChannels
from megavideo.interop.export.run import ExportReport, export
from megavideo.interop.import_run import import_weights
from megavideo.types import Grid
from tests.interop.runs import wan_run, with_wan_encoders
from tests.interop.test_export_pipeline import psnr
from tests.interop.wan_files import SMALL, save_pipeline

pytest.importorskip("accelerate", reason="diffusers loads Wan pipelines only with the package accelerate")
FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENT, GRID, PATCH = Grid(3, 4, 6), Grid(3, 2, 3), (1, 2, 2)
STEPS, GUIDANCE = 4, 3.0
PROMPT, NEGATIVE = "a red square moves right", "a blue circle"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A run of ours and the pipeline of the same weights, with pictures of their size."""

    run: LoadedRun
    pipeline: Any
    files: GivenFiles


def picture(path: Path, phase: float) -> str:
    y, x = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    waves = [np.sin(x / 6 + phase), np.cos(y / 4 - phase), np.sin((x + y) / 8 + phase)]
    Image.fromarray(np.stack([127.5 + 110 * w for w in waves], axis=-1).round().astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("i2v")
    config = dataclasses.replace(SMALL, given_channels=SMALL.latent_channels + 4)
    pipeline = save_pipeline(folder, config, WanImageToVideoPipeline)
    import_weights(ImportRun(src=str(folder / "pipeline"), out=str(folder / "run")))
    run = load_run(folder / "run", weights="raw", dtype=torch.float32, device=CPU)
    return Case(run, pipeline, GivenFiles(picture(folder / "first.png", 0.0), picture(folder / "last.png", 2.0)))


@dataclass(frozen=True)
class Exported:
    """A run beside what it was exported to, and what `export` told."""

    case: Case
    report: ExportReport


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("native")
    wan_run(
        folder, model__given_channels=8, diffusion__shift=3.0, diffusion__conditions__image_to_video=1.0,
        diffusion__conditions__interpolation=1.0,
    )  # fmt: skip
    with_wan_encoders(folder / "run", folder / "weights", strong=True)
    report = export(load(ExportRun, "export", [f"ckpt={folder / 'run'}", f"out={folder / 'out'}"]),
                    find_checkpoint(folder / "run"))  # fmt: skip
    run = load_run(folder / "run", weights="ema", dtype=torch.float32, device=CPU)
    pipeline = WanImageToVideoPipeline.from_pretrained(folder / "out", local_files_only=True)
    files = GivenFiles(picture(folder / "first.png", 0.0), picture(folder / "last.png", 2.0))
    return Exported(Case(run, pipeline, files), report)


def settings(**more: Any) -> SampleRun:
    return SampleRun(
        ckpt="", out="a.mp4", scheduler="unipc", steps=STEPS, guidance=GUIDANCE, frames=FRAMES, height=HEIGHT,
        width=WIDTH, **more,
    )  # fmt: skip


def told(case: Case, files: GivenFiles) -> GivenChannels:
    """What the model is told of the files, as `megavideo sample` reads them."""
    cfg, run = settings(), case.run
    reader = GivenReader(cfg, run.encoders.autoencoder, PATCH, LATENT, run.fps, run.encoders.image_encoder)
    found = read_given(files, cfg, run.config, reader)
    assert isinstance(found, GivenChannels)
    return found


def ours(case: Case, given: GivenChannels) -> np.ndarray:
    """uint8 [frames, height, width, 3]."""
    return sample_videos(case.run, settings(), [PROMPT], NEGATIVE, first=0, given=[given])[0]


def noise(case: Case) -> torch.Tensor:
    """The latent [1, C, T, H, W] from which ours is sampled."""
    width = case.run.config.model.patch_dim
    return unpatchify(SampleKey(0, "prompt/0", 0).normal("sample", (GRID.num_tokens, width)), GRID, PATCH)[None]


def theirs(case: Case, files: GivenFiles) -> np.ndarray:
    """The same of diffusers' pipeline, in 0..255, from the same noise and prompts as ours encodes them."""
    pipeline = case.pipeline
    pipeline.set_progress_bar_config(disable=True)
    prompt, negative = (text[None] for text in case.run.encoders.text_encoder.encode([PROMPT, NEGATIVE]))
    last = None if files.last_image is None else Image.open(files.last_image)
    made = pipeline(
        Image.open(str(files.image)), last_image=last, prompt_embeds=prompt, negative_prompt_embeds=negative,
        height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        latents=noise(case), output_type="np",
    )  # fmt: skip
    video: np.ndarray = made.frames[0] * 255.0
    return video


def only_first(case: Case) -> GivenFiles:
    return GivenFiles(image=case.files.image)


@torch.no_grad()
def condition_of_diffusers(case: Case, files: GivenFiles) -> torch.Tensor:
    """Mask and latents [G, T, H, W] that the pipeline makes of pictures."""
    pixels = [
        None if path is None else case.pipeline.video_processor.preprocess(Image.open(path), height=HEIGHT, width=WIDTH)
        for path in (files.image, files.last_image)
    ]
    _, condition = case.pipeline.prepare_latents(
        pixels[0], 1, case.run.config.model.latent_channels, HEIGHT, WIDTH, FRAMES, torch.float32, CPU, None, None,
        pixels[1],
    )  # fmt: skip
    return condition[0]


def test_the_model_is_told_what_the_pipeline_tells(exported: Exported) -> None:
    case = exported.case
    for files in (only_first(case), case.files):
        found = unpatchify(told(case, files).channels, GRID, PATCH)
        expected = condition_of_diffusers(case, files)
        assert found.shape == expected.shape and torch.equal(found[:4], expected[:4])
        error = float((found - expected).abs().max() / expected.abs().max())
        print(f"condition {error:.1e}")
        assert error < 1e-3  # latents are rounded to float16, as those that a dataset stores


def test_an_imported_pipeline_gives_its_video(imported: Case) -> None:
    files = only_first(imported)
    channels, expected = told(imported, files), theirs(imported, files)
    video = ours(imported, channels)
    print(f"psnr {psnr(video, expected):.1f} dB")
    assert video.shape == expected.shape and expected.std() > 5
    assert psnr(video, expected) >= 40
    # the comparison itself: another image, and zeros in place of the latents of grey frames
    turned = ours(imported, told(imported, GivenFiles(image=imported.files.last_image)))
    latent = unpatchify(channels.channels, GRID, PATCH).clone()
    latent[4:, 1:] = 0.0
    zeros = ours(imported, GivenChannels(patchify(latent, PATCH)))
    print(f"another image {psnr(turned, expected):.1f} dB, zeros {psnr(zeros, expected):.1f} dB")
    assert psnr(turned, expected) < 40 and psnr(zeros, expected) < psnr(video, expected) - 6


def test_an_imported_pipeline_is_not_sampled_without_an_image(imported: Case) -> None:
    reader = GivenReader(settings(), imported.run.encoders.autoencoder, PATCH, LATENT, imported.run.fps)
    with pytest.raises(ConfigError, match=r"^image: .*add image=FILE"):
        read_given(GivenFiles(), settings(), imported.run.config, reader)


def test_an_exported_pipeline_gives_our_video(exported: Exported) -> None:
    case = exported.case
    assert type(case.pipeline).__name__ == "WanImageToVideoPipeline" and case.pipeline.image_encoder is None
    assert case.pipeline.config.expand_timesteps is False
    assert case.pipeline.transformer.config.in_channels == 12
    one, two = (ours(case, told(case, files)) for files in (only_first(case), case.files))
    for files, video in ((only_first(case), one), (case.files, two)):
        expected = theirs(case, files)
        print(f"psnr {psnr(video, expected):.1f} dB")
        assert video.shape == expected.shape and video.std() > 5
        assert psnr(video, expected) >= 40
    assert psnr(one, two) < 50  # so that it is not all the same


def test_an_export_is_verified_and_says_what_it_cannot(exported: Exported) -> None:
    assert exported.report.verify is not None and exported.report.verify.passed
    (note,) = [note for note in exported.report.notes if note.startswith("no pipeline of diffusers does")]
    assert note.endswith("trained for: text alone")
    assert not any("WanPipeline.from_pretrained" in note for note in exported.report.notes)
