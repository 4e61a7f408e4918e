"""What the demo asks of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from megavideo.cli.verbs.demo import training_words
from megavideo.config.load import load
from megavideo.config.schema.demo import DemoRun
from megavideo.config.schema.train import TrainRun


@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (30, 29), (31, 30), (2000, 30)])
def test_any_number_of_steps_can_be_trained(steps: int, warmup_steps: int) -> None:
    demo = load(DemoRun, "demo", [f"steps={steps}"])
    config = load(TrainRun, "train", training_words(demo, Path("runs/demo"), Path("runs/demo/data/latents")))
    assert (config.train.steps, config.optim.warmup_steps) == (steps, warmup_steps)
