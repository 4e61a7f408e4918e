"""Both experts of a pipeline of Wan, imported: sampled as a pair they give the video of diffusers' pipeline."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.cli.main import main
from megavideo.config.dump import read_config
from megavideo.config.load import load
from megavideo.config.schema.sample import SampleRun
from megavideo.config.schema.train import TrainRun
from megavideo.data.patches import token_grid, unpatchify
from megavideo.diffusion.randomness import SampleKey
from megavideo.errors import ConfigError
from megavideo.generate.loaded_run import LoadedRun, load_run
from megavideo.generate.run import sample_videos
from megavideo.generate.sizes import covering_latent
from megavideo.interop.experts import check_pair, check_whole
from megavideo.interop.start_weights import open_start_weights
from megavideo.parallel.engines.fragments import WEIGHT
from megavideo.parallel.layers.sharding import WHOLE
from megavideo.testing.settings import micro_config
from tests.interop.wan_files import SMALL, save_pipeline

BOUNDARY = 0.875
PROMPT, NEGATIVE = "a red square moves right", "blue"
FRAMES, SIDE, STEPS, GUIDANCE, SEED = 9, 32, 4, 3.0, 11


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with `pipeline` and the runs `high` and `low` that are imported from it; what the pipeline is."""
    folder = tmp_path_factory.mktemp("pair")
    made = save_pipeline(folder, boundary=BOUNDARY)
    for expert in ("high", "low"):
        assert main(["import", f"src={folder / 'pipeline'}", f"out={folder / expert}", f"expert={expert}"]) == 0
    return folder, made


def ours(pair: LoadedRun, folder: Path, boundary: float) -> torch.Tensor:
    """What `megavideo sample ckpt=high low_ckpt=low` decodes, 0 to 1, [frames, height, width, 3]."""
    settings = {
        "ckpt": folder / "high", "low_ckpt": folder / "low", "boundary": boundary, "out": folder / "a.mp4",
        "weights": "raw", "scheduler": "unipc", "seed": SEED, "steps": STEPS, "guidance": GUIDANCE, "frames": FRAMES,
        "height": SIDE, "width": SIDE,
    }  # fmt: skip
    cfg = load(SampleRun, "sample", [f"{name}={value}" for name, value in settings.items()])
    return torch.from_numpy(sample_videos(pair, cfg, [PROMPT], NEGATIVE, first=0)[0]).float() / 255


def test_their_video_is_the_pipeline_s(pipeline: tuple[Path, Any]) -> None:
    folder, theirs = pipeline
    grid = token_grid(covering_latent((FRAMES, SIDE, SIDE), 4, 8, (1, 2, 2)), (1, 2, 2))
    noise = unpatchify(SampleKey(SEED, "prompt/0", 0).normal("sample", (grid.num_tokens, 32)), grid, (1, 2, 2))
    expected = theirs(
        PROMPT, NEGATIVE, height=SIDE, width=SIDE, num_frames=FRAMES, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, latents=noise[None], output_type="pt",
    ).frames[0].permute(0, 2, 3, 1)  # fmt: skip

    def psnr(video: torch.Tensor) -> float:
        return -10 * math.log10(float((video - expected).square().mean()))

    high, low = (
        load_run(folder / name, weights="raw", dtype=torch.float32, device=torch.device("cpu"))
        for name in ("high", "low")
    )
    check_pair(high, low, BOUNDARY)
    pair = dataclasses.replace(high, low=low.model)
    found = {boundary: psnr(ours(pair, folder, boundary)) for boundary in (BOUNDARY, 0.01, 0.99)}
    print(f"psnr {found} dB")
    assert float(expected.std()) > 0.02
    assert found[BOUNDARY] >= 40
    assert max(found[0.01], found[0.99]) < found[BOUNDARY] - 10  # so that both have a say


def test_an_import_knows_its_levels(pipeline: tuple[Path, Any]) -> None:
    folder, _ = pipeline
    for name, ends in (("high", (BOUNDARY, 1.0)), ("low", (0.0, BOUNDARY))):
        config = read_config(TrainRun, folder / name / "config.yaml")
        assert (config.diffusion.sigma_range, config.init_expert) == (ends, name)
        with pytest.raises(ConfigError, match="is one of two experts"):
            check_whole(config)


def test_a_boundary_beside_that_of_the_folder(
    pipeline: tuple[Path, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["import", f"src={pipeline[0] / 'pipeline'}", "expert=low", f"out={tmp_path / 'low'}"]
    assert main([*words, "boundary=0.9"]) == 2
    assert "boundary=0.9: model_index.json says 0.875" in capfd.readouterr().err
    assert main([*words, "boundary=0.875", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["boundary_ratio"] == BOUNDARY


def start(pipeline: Path, **settings: Any) -> TrainRun:
    """Settings of a run that begins with one of the pipeline's transformers."""
    return dataclasses.replace(micro_config(data__uri="x", **settings), model=SMALL, init_from=str(pipeline))


@pytest.mark.parametrize("expert", ["high", "low"])
def test_training_begins_with_an_expert(expert: str, pipeline: tuple[Path, Any]) -> None:
    folder, theirs = pipeline[0] / "pipeline", pipeline[1]
    own, other = (f"[{BOUNDARY},1]", f"[0,{BOUNDARY}]")[:: 1 if expert == "high" else -1]
    given = {"init_from": "x", "init_expert": expert}
    reader = open_start_weights(str(folder), start(folder, diffusion__sigma_range=own, **given))
    model = theirs.transformer if expert == "high" else theirs.transformer_2
    expected = model.state_dict()["blocks.1.ffn.net.2.weight"].flatten()
    found = reader.read(WEIGHT, "blocks.1.ffn.down.weight", WHOLE, 0, len(expected))
    assert torch.equal(found, expected)
    for levels in (None, other):
        with pytest.raises(ConfigError, match=rf"diffusion\.sigma_range.*: the {expert} expert in .* alone\. Remedy"):
            open_start_weights(str(folder), start(folder, diffusion__sigma_range=levels, **given))


def test_which_expert_is_asked(pipeline: tuple[Path, Any]) -> None:
    folder = pipeline[0]
    with pytest.raises(ConfigError, match=r"^init_expert: .*add init_expert=high or init_expert=low"):
        open_start_weights(str(folder / "pipeline"), start(folder / "pipeline"))
    given = {"init_from": "x", "init_expert": "low"}
    for place in (folder / "pipeline" / "transformer_2", folder / "low"):
        with pytest.raises(ConfigError, match=r"^init_expert='?low'?: has no effect"):
            open_start_weights(str(place), start(place, **given))
