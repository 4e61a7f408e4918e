"""Runs whose models are told what is given by further input channels: of one expert of a pair, and of all layouts."""

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


@pytest.mark.slow
def test_a_run_with_given_channels_goes_on_under_another_layout_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Clips of several sizes and images, each task; what is told is drawn and measured alike in every layout."""
    write_dataset(str(tmp_path / "latents"), 18, given=("image_to_video", "interpolation"))
    words: dict[str, Any] = {
        "output": tmp_path / "runs", "data__uri": tmp_path / "latents", "model__given_channels": 8,
        "diffusion__conditions__image_to_video": 2.0, "diffusion__conditions__interpolation": 1.0,
        "validation__every": 2, "validation__clips": 5, "validation__levels": 2, "checkpoint__every": 2,
        "optim__lr": 0.005,  # so that after a few steps what is told shows in the loss
    }  # fmt: skip

    def trained(name: str, steps: int, layout: str, processes: int = 1) -> tuple[list[float], list[float]]:
        """Losses of all steps, and what was measured."""
        settings = micro_words(name=name, layout=layout, train__steps=steps, **words)
        outcome = run("megavideo", ["train", *settings], tmp_path / "logs", processes=processes)
        assert outcome.status == 0, outcome.err
        folder = tmp_path / "runs" / name
        measured = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
        return losses, [cell["loss"] for row in measured for cell in row["cells"]]

    straight = trained("straight", 6, "zero0")
    trained("halves", 2, "zero0")
    trained("halves", 4, "cp2-ring", processes=2)
    halves = trained("halves", 6, "tp2-sp", processes=2)
    for one, other in zip(straight, halves, strict=True):
        assert len(one) >= 6 and one == pytest.approx(other, rel=1e-4)
