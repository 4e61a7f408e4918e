"""Whole runs: what they leave, that they go on exactly, and that the number of processes changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megavideo.autoencoder.state import saved_states
from megavideo.cli.main import main
from megavideo.config.schema.prepare import AutoencoderConfig
from megavideo.encoders.folder import build_autoencoder
from megavideo.observe.metrics import read_metrics
from megavideo.testing.launch import run
from tests.autoencoder.settings import ADVERSARY, tiny_words


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of four steps with every term of the loss."""
    output = tmp_path_factory.mktemp("runs")
    done = run("megavideo", ["train-vae", "--json", *tiny_words(output, *ADVERSARY)], output / "logs")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["held_out"] == 2 and report["steps"] == 4 and report["skipped"] == 0
    assert report["features"] == "fixed random features"
    return output / "run"


def test_what_a_run_leaves(trained: Path) -> None:
    rows = read_metrics(trained / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert "adversarial" not in rows[0] and {"adversarial", "discriminator", "kl", "perceptual"} <= set(rows[1])
    assert rows[-1]["psnr_db"] > 0 and rows[-1]["ssim"] < 1 and rows[-1]["flicker"] > 0
    assert rows[-1]["loss"] < rows[0]["loss"]
    page = (trained / "report.html").read_text()
    assert "PSNR" in page and "data:image/png" in page and "Every clip" in page
    assert (trained / "pictures" / "curve.png").stat().st_size > 5000
    assert (trained / "pictures" / "held_out_0.png").is_file()
    assert [path.name for path in saved_states(trained / "checkpoints")] == ["step_00000002", "step_00000004"]


def test_the_average_is_what_encodes(trained: Path) -> None:
    config = json.loads((trained / "vae" / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLWan" and config["latents_std"] != [1.0] * 4

    def fit(count: int) -> Iterator[torch.Tensor]:
        raise AssertionError("the statistics come with the weights")

    autoencoder = build_autoencoder(AutoencoderConfig(kind="wan", path=str(trained)), fit)
    video = torch.rand(3, 9, 64, 64) * 2 - 1
    latent = autoencoder.encode(video)
    assert latent.shape == (4, 3, 8, 8) and autoencoder.decode(latent).shape == video.shape
    state = load_file(saved_states(trained / "checkpoints")[-1] / "state.safetensors")
    weights = load_file(trained / "vae" / "diffusion_pytorch_model.safetensors")
    for name, values in weights.items():
        assert torch.equal(values, state[f"autoencoder/ema/model.{name}"]), name
    assert not torch.equal(weights["quant_conv.weight"], state["autoencoder/weight/model.quant_conv.weight"])


def test_a_run_goes_on_exactly(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    for path in saved_states(tmp_path / "run" / "checkpoints")[1:]:
        (path / "state.json").unlink()  # as if the run had died before it was written
    again = run("megavideo", ["train-vae", "--json", *tiny_words(tmp_path, *ADVERSARY)], tmp_path / "logs")
    assert again.status == 0, again.err
    assert json.loads(again.out)["resumed_at"] == 2
    expected, found = (
        load_file(saved_states(place / "checkpoints")[-1] / "state.safetensors")
        for place in (trained, tmp_path / "run")
    )
    assert set(expected) == set(found)
    for name, values in expected.items():
        assert torch.allclose(found[name], values, atol=1e-6), name


def test_processes_change_nothing(trained: Path, tmp_path: Path) -> None:
    words = tiny_words(tmp_path, *ADVERSARY)
    done = run("megavideo", ["train-vae", *words], tmp_path / "logs", processes=2)
    assert done.status == 0, done.err
    one, two = (read_metrics(place / "metrics.jsonl") for place in (trained, tmp_path / "run"))
    for left, right in zip(one, two, strict=True):
        for name in ("loss", "reconstruction", "kl", "perceptual", "grad_norm"):
            assert right[name] == pytest.approx(left[name], rel=2e-3), (left["step"], name)
    assert two[-1]["psnr_db"] == pytest.approx(one[-1]["psnr_db"], abs=0.02)


def test_loaded_weights_are_only_measured(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "vae=loaded", f"model.path={trained}", f"output={tmp_path}", "name=measured", "data.src=null", "data.area=null",
        "data.size=32", "data.frames=5", "data.held_out=2", "train.steps=0",
    ]  # fmt: skip
    done = run("megavideo", ["train-vae", "--json", *words], tmp_path / "logs")
    assert done.status == 0, done.err
    measured = json.loads(done.out)
    before = read_metrics(trained / "metrics.jsonl")[-1]
    assert measured["psnr_db"] == pytest.approx(before["psnr_db"], abs=1e-3)
    assert measured["vae"] == str(trained)
    assert (tmp_path / "measured" / "report.html").is_file()


def test_a_run_keeps_its_settings(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tiny_words(trained.parent, *ADVERSARY, "loss.kl=0.5")
    assert main(["train-vae", *words]) == 2
    assert "loss.kl" in capsys.readouterr().err


def test_fewer_steps_than_were_made_are_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    done = run("megavideo", ["train-vae", *tiny_words(tmp_path, *ADVERSARY, "train.steps=2")], tmp_path / "logs")
    assert done.status == 2 and "train.steps=2: the run in" in done.err


def test_weights_that_could_not_be_written_are_made_up_for(tmp_path: Path) -> None:
    """The last save fails at its second part: the next start must not take the run for done."""
    words = tiny_words(tmp_path, "train.steps=1", "optim.warmup_steps=0")
    obstacle = tmp_path / "run" / ".writing-vae"
    obstacle.parent.mkdir()
    obstacle.touch()
    failed = run("megavideo", ["train-vae", *words], tmp_path / "logs")
    assert failed.status == 2 and "not saved" in failed.err
    obstacle.unlink()
    done = run("megavideo", ["train-vae", "--json", *words], tmp_path / "more_logs")
    assert done.status == 0, done.err
    assert (Path(json.loads(done.out)["vae"]) / "config.json").is_file()
