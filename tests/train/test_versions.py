"""A run holds to the version of the dataset that it was started on, whatever is added later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megavideo.encoders.encode.run import encode
from megavideo.observe.metrics import read_metrics
from megavideo.testing.launch import Finished, run
from megavideo.testing.settings import micro_words
from tests.encoders.encode_cases import settings, write_film, write_list


def _train(folder: Path, **more: object) -> Finished:
    """A run of six steps, which is saved after the third."""
    words = {
        "name": "held", "output": folder / "runs", "data__uri": folder / "latents", "model__latent_channels": 8,
        "model__text_dim": 64, "train__steps": 6, "checkpoint__every": 3, **more,
    }  # fmt: skip
    return run("megavideo", ["train", *micro_words(**words)], folder / "logs")


def _losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "runs" / "held" / "metrics.jsonl")]


@pytest.fixture
def started(tmp_path: Path) -> tuple[Path, list[float]]:
    """A folder with a run of which half is lost, on a dataset that was added to since, and its losses."""
    film = write_film(tmp_path / "film")
    encode(settings(write_list(tmp_path / "list", film, range(12)), tmp_path / "latents"))
    outcome = _train(tmp_path)
    assert outcome.status == 0, outcome.err
    encode(settings(write_list(tmp_path / "list", film, range(30)), tmp_path / "latents"))
    shutil.rmtree(sorted((tmp_path / "runs" / "held" / "checkpoints").iterdir())[-1])
    losses = _losses(tmp_path)
    assert len(losses) == 6
    return tmp_path, losses


@pytest.mark.slow
def test_a_run_goes_on_with_its_version(started: tuple[Path, list[float]]) -> None:
    folder, losses = started
    outcome = _train(folder)
    assert outcome.status == 0 and "step_00000003" in outcome.err
    assert _losses(folder) == losses
    assert json.loads((folder / "runs" / "held" / "dataset.json").read_bytes())["version"] == 1


@pytest.mark.slow
def test_a_version_can_be_chosen(started: tuple[Path, list[float]]) -> None:
    folder, losses = started
    refused = _train(folder, data__version=2)
    assert refused.status != 0 and "started on another dataset" in refused.err
    shutil.rmtree(folder / "runs")
    assert _train(folder, data__version=1).status == 0
    assert _losses(folder) == losses
    shutil.rmtree(folder / "runs")
    assert _train(folder).status == 0
    assert _losses(folder) != losses
