"""A pipeline of Wan, imported: the numbers of diffusers' transformer, and the video of its pipeline."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.config.load import load
from megavideo.config.schema.import_ import ImportRun
from megavideo.config.schema.prepare import TextEncoderConfig
from megavideo.config.schema.sample import SampleRun
from megavideo.data.patches import patchify, token_grid, unpatchify
from megavideo.diffusion.randomness import SampleKey
from megavideo.encoders.folder import build_text_encoder, load_text_encoder
from megavideo.errors import CheckpointError
from megavideo.generate.loaded_run import LoadedRun, load_run
from megavideo.generate.run import sample_videos
from megavideo.generate.sizes import covering_latent
from megavideo.interop.import_run import ImportReport, import_weights
from megavideo.types import Grid
from tests.encoders.tiny_models import make_wan
from tests.interop.wan_files import SCHEDULER, save_pipeline
from tests.model.packs import make_pack

PROMPT, NEGATIVE = "a red square moves right", "blue"
FRAMES, SIDE, STEPS, GUIDANCE, SEED = 9, 32, 4, 3.0, 11


@dataclass(frozen=True)
class Imported:
    """A pipeline of diffusers, and the same imported."""

    pipeline: Any
    report: ImportReport
    run: LoadedRun
    folder: Path


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp("wan")
    pipeline = save_pipeline(folder)
    report = import_weights(ImportRun(src=str(folder / "pipeline"), out=str(folder / "run")))
    run = load_run(folder / "run", weights="raw", dtype=torch.float32, device=torch.device("cpu"))
    return Imported(pipeline, report, run, folder)


@torch.no_grad()
def test_the_transformer_gives_the_same_numbers(imported: Imported) -> None:
    generator = torch.Generator().manual_seed(3)
    furthest = 0.0
    for grid in (Grid(3, 4, 6), Grid(1, 8, 4), Grid(2, 4, 4)):
        latent = torch.randn(8, grid.t, grid.h, grid.w, generator=generator)
        text = torch.randn(9, 32, generator=generator)
        theirs = imported.pipeline.transformer(latent[None], torch.tensor([431.0]), text[None]).sample[0]
        pack = make_pack([token_grid(grid, (1, 2, 2))], [text], [patchify(latent, (1, 2, 2))], [431.0])
        ours = unpatchify(imported.run.model(pack), token_grid(grid, (1, 2, 2)), (1, 2, 2))
        furthest = max(furthest, float((ours - theirs).abs().max() / theirs.abs().max()))
    print(f"furthest {furthest:.1e}")
    assert furthest <= 1e-5


def test_its_video_is_the_pipeline_s(imported: Imported) -> None:
    settings = {
        "ckpt": imported.folder, "out": imported.folder / "a.mp4", "weights": "raw", "scheduler": "unipc", "seed": SEED,
        "steps": STEPS, "guidance": GUIDANCE, "frames": FRAMES, "height": SIDE, "width": SIDE,
    }  # fmt: skip
    cfg = load(SampleRun, "sample", [f"{name}={value}" for name, value in settings.items()])
    ours = torch.from_numpy(sample_videos(imported.run, cfg, [PROMPT], NEGATIVE, first=0)[0]).float() / 255

    grid = covering_latent((FRAMES, SIDE, SIDE), 4, 8, (1, 2, 2))
    tokens = SampleKey(SEED, "prompt/0", 0).normal("sample", (token_grid(grid, (1, 2, 2)).num_tokens, 32))
    noise = unpatchify(tokens, token_grid(grid, (1, 2, 2)), (1, 2, 2))
    theirs = imported.pipeline(
        PROMPT, NEGATIVE, height=SIDE, width=SIDE, num_frames=FRAMES, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, latents=noise[None], output_type="pt",
    ).frames[0].permute(0, 2, 3, 1)  # fmt: skip
    assert ours.shape == theirs.shape and float(theirs.std()) > 0.02
    psnr = -10 * math.log10(float((ours - theirs).square().mean()))
    print(f"psnr {psnr:.1f} dB")
    assert psnr >= 40.0


@torch.no_grad()
def test_text_without_its_zeros_would_give_another_video(imported: Imported) -> None:
    """The comparison itself: the zeros behind a prompt count."""
    padded = imported.run.encoders.text_encoder.encode([PROMPT])[0]
    packs = [make_pack([Grid(1, 2, 2)], [text], [torch.ones(4, 32)], [500.0]) for text in (padded, padded[:6])]
    whole, cut = map(imported.run.model, packs)
    assert float((whole - cut).abs().max() / whole.abs().max()) > 1e-2


def test_text_is_what_the_pipeline_encodes(imported: Imported) -> None:
    theirs, none = imported.pipeline.encode_prompt(PROMPT, "", max_sequence_length=512)
    ours = imported.run.encoders.text_encoder.encode([PROMPT, ""])
    for mine, expected in zip(ours, (theirs[0], none[0]), strict=True):
        assert mine.shape == (512, 32)
        assert torch.allclose(mine, expected, atol=1e-5)
        assert not mine[20:].any()


def test_padding_is_kept_with_the_encoder(imported: Imported, tmp_path: Path) -> None:
    text = str(imported.folder / "pipeline")
    built = build_text_encoder(TextEncoderConfig(kind="transformers", path=text, max_tokens=8, pad_to=16))
    built.save(tmp_path)
    (tmp_path / "encoders.json").write_text('{"autoencoder": "wan", "text_encoder": "transformers"}')
    again = load_text_encoder(tmp_path)
    for captions in ([""], ["red"], ["red " * 40, "a"]):
        assert {len(vectors) for vectors in again.encode(captions)} == {16}
        assert all(torch.equal(a, b) for a, b in zip(again.encode(captions), built.encode(captions), strict=True))
    # and one of an older dataset, which says nothing of it, pads nothing
    path = tmp_path / "transformers_text.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_to"}))
    assert len(load_text_encoder(tmp_path).encode(["red"])[0]) == 2


def test_the_report_tells_what_the_pipeline_says(imported: Imported) -> None:
    report = imported.report
    assert (report.dialect, report.shift, report.boundary_ratio, report.expand_timesteps) == (
        "diffusers", SCHEDULER["flow_shift"], None, False,
    )  # fmt: skip
    assert imported.run.config.diffusion.shift == SCHEDULER["flow_shift"]
    assert report.encoders == "wan, transformers" and report.model["heads"] == 2
    assert report.parameters == sum(p.numel() for p in imported.pipeline.transformer.parameters())


def test_model_index_is_read(imported: Imported, tmp_path: Path) -> None:
    whole = imported.folder / "pipeline"
    for part in ("transformer", "scheduler"):
        (tmp_path / "moe" / part).parent.mkdir(exist_ok=True)
        (tmp_path / "moe" / part).symlink_to(whole / part)
    told = json.loads((whole / "model_index.json").read_text())
    (tmp_path / "moe" / "model_index.json").write_text(
        json.dumps(told | {"boundary_ratio": 0.875, "expand_timesteps": True})
    )
    report = import_weights(ImportRun(src=str(tmp_path / "moe"), out=str(tmp_path / "out")))
    assert (report.boundary_ratio, report.expand_timesteps, report.encoders) == (0.875, True, "none")


def test_the_autoencoder_of_another_model_is_refused(imported: Imported, tmp_path: Path) -> None:
    whole, mixed = imported.folder / "pipeline", tmp_path / "mixed"
    mixed.mkdir()
    for part in ("transformer", "text_encoder", "tokenizer", "model_index.json"):
        (mixed / part).symlink_to(whole / part)
    make_wan(mixed / "vae", z_dim=4, latents_mean=[0.1] * 4, latents_std=[1.1] * 4)
    with pytest.raises(CheckpointError, match="vae has 4 channels, and the transformer 8"):
        import_weights(ImportRun(src=str(mixed), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
