"""Samples of models that are told what is given by further input channels, as Wan's image-to-video models are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from megavideo.config.given import GivenFiles
from megavideo.data.clips.write_video import write_video
from megavideo.data.patches import token_grid, unpatchify
from megavideo.diffusion.randomness import SampleKey
from megavideo.errors import ConfigError
from megavideo.generate.given import GivenReader, read_given
from megavideo.generate.loaded_run import LoadedRun
from megavideo.generate.run import sample_videos
from megavideo.generate.sampler import GivenChannels, Guidance, Predictor, Prompt, sample_latents
from megavideo.generate.schedulers import build_scheduler
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config
from megavideo.types import Grid, PackedBatch
from tests.generate.test_generate import opened, settings
from tests.generate.test_given import LATENT, PATCH, SIZE, moving, picture, reader


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """An image, another one, and a video."""
    write_video(tmp_path / "clip.mp4", moving(15), 8.0)
    return {
        "image": picture(tmp_path / "image.png", moving(1)[0]),
        "last_image": picture(tmp_path / "last.png", moving(9)[-1]),
        "video": str(tmp_path / "clip.mp4"),
    }


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """Of a model that is told what is given by further input channels."""
    config = micro_config(
        name="wide", output=tmp_path_factory.mktemp("wide"), data__uri="x", diffusion__conditions__image_to_video=1.0,
        diffusion__conditions__interpolation=1.0, model__given_channels=8,
    )  # fmt: skip
    write_run(config)
    return opened(config)


def test_a_model_with_given_channels_is_told_of_frames_and_grey_ones(wide: LoadedRun, files: dict[str, str]) -> None:
    """As autoencoders see them: with everything between at zero, and a mask of four channels, one a frame."""
    grey = np.zeros((9, 16, 32, 3), np.float32)
    grey[0] = moving(1)[0] / 127.5 - 1.0
    both = grey.copy()
    both[-1] = moving(9)[-1] / 127.5 - 1.0
    given = {"image_to_video": GivenFiles(image=files["image"]),
             "interpolation": GivenFiles(files["image"], files["last_image"])}  # fmt: skip
    for pixels, (mode, one) in zip((grey, both), given.items(), strict=True):
        found = read_given(one, settings(**SIZE), wide.config, reader(wide))
        assert isinstance(found, GivenChannels)
        latent = unpatchify(found.channels, token_grid(LATENT, PATCH), PATCH)
        video = torch.from_numpy(pixels).permute(3, 0, 1, 2)
        assert torch.allclose(latent[4:], wide.encoders.autoencoder.encode(video), atol=2e-3)
        mask = latent[:4, :, 0, 0].T.tolist()
        assert mask == [[1.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, float(mode == "interpolation")]]


def test_what_a_model_with_given_channels_is_not_told(wide: LoadedRun, files: dict[str, str]) -> None:
    ends = GivenFiles(files["image"], files["last_image"])
    with pytest.raises(ConfigError, match=r"^frames=10: the last frame is given.*take frames=9 or 13"):
        cfg = settings(**SIZE | {"frames": 10})
        GivenReader(cfg, wide.encoders.autoencoder, PATCH, Grid(4, 2, 4), 8.0).tell(
            ends, "interpolation", wide.config.model
        )
    with pytest.raises(ConfigError, match=r"mode='extension': the run wide was never trained on it"):
        read_given(GivenFiles(video=files["video"]), settings(**SIZE, mode="extension"), wide.config, reader(wide))
    only = dataclasses.replace(wide.config.diffusion.conditions, text=0.0)
    config = dataclasses.replace(
        wide.config, diffusion=dataclasses.replace(wide.config.diffusion, conditions=only), stages={}
    )
    with pytest.raises(ConfigError, match=r"^image: .*only trained on videos whose first frame is given.*add image="):
        read_given(GivenFiles(), settings(**SIZE), config, reader(wide))
    assert read_given(GivenFiles(), settings(**SIZE | {"frames": 1}), config, reader(wide)) is None
    assert read_given(GivenFiles(), settings(**SIZE), wide.config, reader(wide)) is None


def test_given_channels_are_told_at_every_step(wide: LoadedRun, files: dict[str, str]) -> None:
    seen: list[PackedBatch] = []
    plain = Predictor.of(wide.model)

    def predict(pack: PackedBatch) -> torch.Tensor:
        seen.append(pack)
        return plain.predict(pack)

    told = reader(wide).tell(GivenFiles(image=files["image"]), "image_to_video", wide.config.model)
    text, negative = wide.encoders.text_encoder.encode(["a red shape", ""])
    prompts = [Prompt(text, SampleKey(0, str(i), 0), given) for i, given in enumerate((told, None))]
    sampler = build_scheduler("euler", wide.config.diffusion, 3.0)
    sampler.set_timesteps(3)
    model = dataclasses.replace(plain, predict=predict, multiple=5)
    grid = token_grid(LATENT, PATCH)
    bound, free = sample_latents(model, sampler, prompts, Guidance(5.0, negative), grid, PATCH, 8.0)
    for pack in seen:  # with the prompt and without it
        assert pack.given is not None and len(pack.given) == len(pack.tokens) == 25 and not pack.condition_mask.any()
        channels = pack.given[:24].view(2, 2, grid.num_tokens, -1)
        assert torch.equal(channels[0, 0], told.channels) and torch.equal(channels[1, 0], told.channels)
        assert not channels[:, 1].any()
    assert len(seen) == 3 and bound.shape == free.shape
    (video,) = sample_videos(wide, settings(**SIZE), ["a"], "", first=0, given=[told])
    assert video.shape == (9, 16, 32, 3)
