"""A run of one expert of a pair, whose model is told what is given by further input channels: what it writes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megavideo.observe.metrics import read_metrics
from megavideo.testing.dataset import write_dataset
from megavideo.testing.launch import run
from megavideo.testing.settings import micro_words
from megavideo.types import Grid


def test_an_expert_with_given_channels_trains_validates_and_draws(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "latents"), 8, grids=(Grid(3, 4, 4),), given=("image_to_video",))
    words: dict[str, Any] = {
        "name": "high", "output": tmp_path / "runs", "data__uri": tmp_path / "latents", "train__steps": 2,
        "model__given_channels": 8, "diffusion__conditions__image_to_video": 1.0, "diffusion__shift": 5.0,
        "diffusion__sigma_range": "[0.875,1]", "diffusion__timesteps": "uniform", "diffusion__logit_mean": None,
        "diffusion__logit_std": None, "validation__every": 2, "validation__clips": 2, "validation__levels": 2,
        "validation__samples_every": 2, "validation__prompts": "[a red shape]", "validation__frames": 5,
        "validation__height": 16, "validation__width": 16, "validation__sample_steps": 2,
    }  # fmt: skip
    outcome = run("megavideo", ["train", *micro_words(**words)], tmp_path / "logs")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "runs" / "high"
    rows = list(read_metrics(folder / "metrics.jsonl"))
    assert [row["sigma_range_share"] for row in rows] == [pytest.approx(1 - 0.5833, abs=1e-4)] * 2
    (validation,) = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert validation["levels"] == [0.90625, 0.96875]
    # in the loss are all tokens of both clips, of the first frame too
    assert [cell["count"] for cell in validation["cells"]] == [2, 2]
    assert (folder / "samples" / "step_00000002" / "00.mp4").is_file()
