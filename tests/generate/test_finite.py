"""No video from values that are not finite: of weights, of the model's latents, and of decoded pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megavideo.cli.main import main
from megavideo.config.schema.train import TrainRun
from megavideo.errors import NumericsError
from megavideo.generate.run import sample_videos
from megavideo.generate.sample_files import Drawn, SampleFiles
from megavideo.generate.videos import to_pixels
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config
from megavideo.testing.spoil import spoil_values
from tests.generate.test_generate import opened, settings

NAME = "blocks.0.ffn.down.weight"


def written(folder: Path) -> tuple[TrainRun, Path]:
    """A run of random weights, and its checkpoint."""
    config = micro_config(name="run", output=folder, data__uri="gone", optim__ema_decay=0.9)
    (manifest,) = write_run(config).glob("checkpoints/*/manifest.json")
    return config, manifest.parent


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    config, checkpoint = written(tmp_path)
    spoil_values(checkpoint, "ema", NAME, value)
    with pytest.raises(NumericsError, match=rf"1 tensor holds .*ema of '{NAME}' \(1 of .*weights=raw"):
        opened(config)
    opened(config, "raw")  # the weights themselves are finite
    spoil_values(checkpoint, "weight", NAME, value)
    with pytest.raises(NumericsError, match=rf"weight of '{NAME}'"):
        opened(config, "raw")


def test_the_command_writes_no_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, checkpoint = written(tmp_path)
    spoil_values(checkpoint, "ema", NAME)
    out = tmp_path / "out.mp4"
    words = ["sample", f"ckpt={tmp_path / 'run'}", f"out={out}", "steps=2", "frames=1", "height=16", "width=16"]
    assert main([*words, "--prompt", "a red ball"]) == 2
    assert f"ema of '{NAME}'" in capsys.readouterr().err
    assert not out.exists()


def test_finite_weights_that_give_no_finite_latent(tmp_path: Path) -> None:
    run = opened(written(tmp_path)[0])
    with torch.no_grad():  # finite, and too large to be multiplied by
        dict(run.model.named_parameters())[NAME].fill_(3e38)
    with pytest.raises(NumericsError, match=r"prompt 'a red ball': the model of step 5 gives values.*guidance="):
        sample_videos(run, settings(), ["a red ball"], "", first=0)


def test_an_autoencoder_that_gives_no_finite_pixel(tmp_path: Path) -> None:
    run = opened(written(tmp_path)[0])

    class Broken:
        time_ratio, space_ratio = run.encoders.autoencoder.time_ratio, run.encoders.autoencoder.space_ratio

        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            return run.encoders.autoencoder.decode(latent) * math.inf

    broken = replace(run, encoders=replace(run.encoders, autoencoder=Broken()))  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match=r"decoded video holds values that are not finite.*encoders/"):
        sample_videos(broken, settings(), ["a red ball"], "", first=0)
    with pytest.raises(NumericsError):
        to_pixels(torch.full((3, 1, 8, 8), math.nan), (1, 8, 8))


def test_samples_during_training_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path)
    files = SampleFiles(tmp_path / "samples", tmp_path / "run" / "encoders", Drawn(("a",), (1, 16, 16), 8.0))
    with caplog.at_level("WARNING"):
        files.write(3, [torch.full((4, 1, 2, 2), math.nan)])
        files.close()
    (record,) = [record for record in caplog.records if record.name == "megavideo.generate.sample_files"]
    assert "step 3: no samples are written: a decoded video holds" in record.getMessage() and not record.exc_info
    assert files.written() == [] and not list((tmp_path / "samples").glob("step_*"))
