"""Two experts, each for its part of the noise levels, sampled as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.config.schema.train import TrainRun
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import apply_shift
from megavideo.errors import ConfigError
from megavideo.generate.run import sample
from megavideo.generate.sampler import Guidance, Predictor, Prompt, sample_latents
from megavideo.generate.schedulers import build_scheduler
from megavideo.testing.saved_run import random_model, write_run
from megavideo.testing.settings import micro_config
from megavideo.types import Grid, PackedBatch
from tests.generate.test_generate import settings
from tests.model.packs import make_pack

GRID, PATCH, STEPS, SHIFT, SCALE = Grid(2, 1, 2), (1, 2, 2), 8, 5.0, 4.0


def expert(folder: Path, name: str, ends: str | None = None, **given: Any) -> TrainRun:
    config = micro_config(name=name, output=folder, data__uri="x", diffusion__sigma_range=ends, **given)
    write_run(config)
    return config


@pytest.mark.parametrize(("boundary", "expected"), [(0.875, 3), (0.5, 6), (0.05, 7)])
def test_a_pair_gives_what_a_plain_loop_gives(boundary: float, expected: int) -> None:
    config = micro_config(data__uri="x")
    high, low = random_model(config.model, 0), random_model(config.model, 1)
    draw = torch.Generator().manual_seed(0)
    text, negative = torch.randn(3, 32, generator=draw), torch.randn(2, 32, generator=draw)
    scheduler = build_scheduler("euler", config.diffusion, SHIFT)
    scheduler.set_timesteps(STEPS)
    key = SampleKey(0, "a", 0)
    (latent,) = sample_latents(
        Predictor.of(high, low, boundary), scheduler, [Prompt(text, key)], Guidance(SCALE, negative), GRID, PATCH, 8.0
    )
    x = key.normal("sample", (GRID.num_tokens, config.model.patch_dim))
    levels = [apply_shift(level, SHIFT) for level in torch.linspace(1.0, 0.001, STEPS).tolist()]
    steps_of_high = 0
    for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
        model = high if level >= boundary else low
        steps_of_high += model is high
        with torch.no_grad():
            with_prompt, without = (
                model(make_pack([GRID], [words], [x], [1000 * level], num_segments=1)) for words in (text, negative)
            )
        x = x + (following - level) * (without + SCALE * (with_prompt - without))
    cells = x.view(2, 1, 2, 1, 2, 2, -1).permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, 2, 2, 4)
    assert steps_of_high == expected
    print(f"boundary {boundary}: largest difference {(latent - cells).abs().max():.1e} of {cells.abs().max():.1f}")
    assert (latent - cells).abs().max() < 1e-5 * cells.abs().max()


def test_the_steps_of_each_expert_are_those_of_its_levels() -> None:
    seen: list[tuple[str, float]] = []

    def predict(name: str) -> Any:
        def predicted(pack: PackedBatch) -> torch.Tensor:
            seen.append((name, float(pack.timestep[0])))
            return torch.zeros_like(pack.tokens)

        return predicted

    model = Predictor(
        predict("high"),
        micro_config(data__uri="x").model,
        torch.float32,
        torch.device("cpu"),
        low=predict("low"),
        boundary=0.875,
    )
    scheduler = build_scheduler("euler", micro_config(data__uri="x").diffusion, SHIFT)
    scheduler.set_timesteps(40)
    text = torch.zeros(1, 32)
    sample_latents(model, scheduler, [Prompt(text, SampleKey(0, "a", 0))], Guidance(1.0, text), GRID, PATCH, 8.0)
    assert {name for name, timestep in seen if timestep >= 875} == {"high"}
    assert {name for name, timestep in seen if timestep < 875} == {"low"} and len(seen) == 40


def test_the_command_takes_a_pair(tmp_path: Path) -> None:
    expert(tmp_path, "high", "[0.875,1]")
    expert(tmp_path, "low", "[0,0.875]")
    place = {"ckpt": f"{tmp_path}/high", "low_ckpt": f"{tmp_path}/low", "out": f"{tmp_path}/a.mp4"}
    assert sample(settings(**place, boundary=0.875), ["a"], "").files
    with pytest.raises(
        ConfigError, match=r"boundary=0\.9: gives the levels from 0 to 0\.9 to low_ckpt, and the run low was"
    ):
        sample(settings(**place, boundary=0.9), ["a"], "")
    with pytest.raises(
        ConfigError, match=r"boundary=0\.8: gives the levels from 0\.8 to 1 to ckpt, and the run high was"
    ):
        sample(settings(**place, boundary=0.8), ["a"], "")
    with pytest.raises(ConfigError, match=r"low_ckpt: the run high is one of two experts .*\[0\.875, 1\.0\]"):
        sample(settings(ckpt=f"{tmp_path}/high", out=f"{tmp_path}/b.mp4"), ["a"], "")
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"model__ffn": 64}, r"model\.ffn is 64, and"),
        ({"diffusion__shift": 3.0}, r"diffusion\.shift is 3\.0, and None"),
    ],
)
def test_runs_that_are_no_pair(tmp_path: Path, other: dict[str, Any], match: str) -> None:
    expert(tmp_path, "high")
    expert(tmp_path, "low", **other)
    cfg = settings(ckpt=f"{tmp_path}/high", low_ckpt=f"{tmp_path}/low", out=f"{tmp_path}/a.mp4", boundary=0.5)
    with pytest.raises(ConfigError, match=match):
        sample(cfg, ["a"], "")


def test_other_encoders_are_refused(tmp_path: Path) -> None:
    expert(tmp_path, "high")
    folder = Path(expert(tmp_path, "low").output) / "low" / "encoders"
    (folder / "encoders.json").write_text((folder / "encoders.json").read_text() + " ")
    (path,) = folder.glob("bytes*.json")
    path.write_text(path.read_text().replace("16", "12"))
    cfg = settings(ckpt=f"{tmp_path}/high", low_ckpt=f"{tmp_path}/low", out=f"{tmp_path}/a.mp4", boundary=0.5)
    with pytest.raises(ConfigError, match=r"high/encoders and .*low/encoders differ"):
        sample(cfg, ["a"], "")
