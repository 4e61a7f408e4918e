"""Two experts exported as one pipeline: diffusers loads both and generates what `megavideo sample` does with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megavideo.checkpoint.read import find_checkpoint
from megavideo.cli.main import main
from megavideo.config.schema.sample import SampleRun
from megavideo.generate.loaded_run import load_run
from megavideo.generate.run import sample_videos
from megavideo.interop.export.verify import Verified
from tests.interop.runs import export, wan_run, with_wan_encoders
from tests.interop.test_export_pipeline import (
    FRAMES,
    HEIGHT,
    NEGATIVE,
    PROMPT,
    STEPS,
    WIDTH,
    generated,
    our_noise,
    psnr,
)

BOUNDARY, GUIDANCE = 0.875, 40.0  # much, so that each expert moves the video of random weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a high and a low expert on one dataset's encoders."""
    folder = tmp_path_factory.mktemp("pair")
    for seed, (name, ends) in enumerate((("high", f"[{BOUNDARY},1]"), ("low", f"[0,{BOUNDARY}]"))):
        wan_run(folder / name, seed=10 * seed, diffusion__shift=3.0, diffusion__sigma_range=ends)
    high, low = folder / "high" / "run", folder / "low" / "run"
    with_wan_encoders(high, folder / "weights")
    shutil.rmtree(low / "encoders")
    shutil.copytree(high / "encoders", low / "encoders")
    return high, low


def words(pair: tuple[Path, Path], *further: str) -> list[str]:
    return [f"ckpt={pair[0]}", f"low_ckpt={pair[1]}", f"boundary={BOUNDARY}", *further]


def test_the_pipeline_generates_what_sample_does_with_both(
    pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from diffusers import WanPipeline

    report = export(words(pair, f"out={tmp_path / 'out'}"), capfd)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["boundary_ratio"] == BOUNDARY and index["transformer_2"] == ["diffusers", "WanTransformer3DModel"]
    assert report["verify"]["relative_error"] < 1e-6 and report["low_step"] == 5
    pipe = WanPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    for name, model in (("high", pipe.transformer), ("low", pipe.transformer_2)):
        assert report["num_parameters"] == 2 * sum(p.numel() for p in model.parameters()), name

    high, low = (load_run(run, weights="ema", dtype=torch.float32, device=torch.device("cpu")) for run in pair)
    cfg = SampleRun(ckpt="", low_ckpt="", boundary=BOUNDARY, out="a.mp4", scheduler="unipc", steps=STEPS,
                    guidance=GUIDANCE, frames=FRAMES, height=HEIGHT, width=WIDTH)  # fmt: skip
    expected = sample_videos(replace(high, low=low.model), cfg, [PROMPT], NEGATIVE, first=0)[0]
    prompt, negative = (text[None] for text in high.encoders.text_encoder.encode([PROMPT, NEGATIVE]))
    given = {"prompt_embeds": prompt, "negative_prompt_embeds": negative}
    noise = our_noise(high.config.model.latent_channels)
    video = generated(pipe, GUIDANCE, latents=noise, **given)
    print(f"PSNR {psnr(video, expected)}")
    assert video.shape == expected.shape and expected.std() > 10 and psnr(video, expected) >= 40
    for other in (0.01, 0.99):  # as if either expert were alone, or nearly so: both have a say
        pipe.register_to_config(boundary_ratio=other)
        assert psnr(generated(pipe, GUIDANCE, latents=noise, **given), expected) < 40


NO_PAIR = [
    ([], "low_ckpt: the run run is one of two experts"),
    (["low_ckpt=LOW", "boundary=0.9"], "boundary=0.9: gives the levels from 0 to 0.9 to low_ckpt"),
    (["low_ckpt=LOW", "boundary=0.8"], "boundary=0.8: gives the levels from 0.8 to 1 to ckpt"),
]


@pytest.mark.parametrize(("given", "part"), NO_PAIR)
def test_what_is_no_pair(
    given: list[str], part: str, pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("LOW", str(pair[1])) for word in given]
    assert main(["export", f"ckpt={pair[0]}", f"out={tmp_path / 'out'}", *given]) == 2
    assert part in capfd.readouterr().err and not list(tmp_path.iterdir())


def test_experts_for_other_tasks(pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wan_run(tmp_path, diffusion__shift=3.0, diffusion__conditions__image_to_video=1.0)
    shutil.rmtree(tmp_path / "run" / "encoders")
    shutil.copytree(pair[0] / "encoders", tmp_path / "run" / "encoders")
    assert main(["export", f"out={tmp_path / 'out'}", *words((pair[0], tmp_path / "run"))]) == 2
    told = capfd.readouterr().err
    assert "low_ckpt=" in told and "a pipeline is given images for both experts or for none" in told
    assert not (tmp_path / "out").exists()


def test_damage_of_the_low_expert_leaves_nothing(
    pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found when all of both has been written, as one bit of a number tells nothing else."""
    shutil.copytree(pair[1], tmp_path / "low")
    path = next(find_checkpoint(tmp_path / "low").glob("fragments_*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 // 4 * 4 + 4] ^= 1
    path.write_bytes(content)
    assert main(["export", f"out={tmp_path / 'out'}", *words((pair[0], tmp_path / "low"))]) == 2
    assert f"{path.name}: damaged: its xxh64 is" in capfd.readouterr().err
    assert [place.name for place in tmp_path.iterdir()] == ["low"]


def test_verify_is_of_both(
    pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([Verified(1e-7, 1e-5, None), Verified(1e-3, 1e-5, None)])
    monkeypatch.setattr("megavideo.interop.export.run.verify", lambda *_: next(found))
    assert main(["export", f"out={tmp_path / 'out'}", *words(pair), "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["verify"]["relative_error"] == 1e-3
