"""Latents of what models with further input channels are given: a first frame, or both ends, between grey frames."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModel

from megavideo.config.schema.prepare import AutoencoderConfig, EncodeRun, ImageEncoderConfig, TextEncoderConfig
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.dataset.given_latents import given_of_row
from megavideo.data.ingest import read_clip_list
from megavideo.data.stream.shards import LatentSample, ShardReader
from megavideo.encoders.encode.clips import ClipLimits, ClipSource, read_clip, to_video
from megavideo.encoders.encode.dataset_place import check_place
from megavideo.encoders.encode.run import encode
from megavideo.encoders.image_encoder import build_image_encoder
from megavideo.errors import ConfigError, DataError
from tests.data.clip_files import moving_square, write_clip
from tests.encoders.test_frame_rates import listed
from tests.encoders.tiny_models import make_clip_vision, make_wan, strengthen

MEAN, STD = [0.1 * number for number in range(8)], [1.0 + 0.2 * number for number in range(8)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EncodeRun]:
    """A clip and an image, encoded by a small autoencoder of Wan's and a small CLIP."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "src").mkdir()
    write_clip(folder / "src" / "clip.mp4", moving_square(9, 32, 48), fps=16)
    Image.fromarray(moving_square(1, 32, 32)[0]).save(folder / "src" / "image.png")
    listed(folder / "src", folder / "list", ["clip.mp4", "image.png"])
    wan = strengthen(make_wan(folder / "wan", latents_mean=MEAN, latents_std=STD))
    cfg = EncodeRun(
        src=str(folder / "list"), out=str(folder / "out"), area=1536, max_frames=9,
        given_latents=("image_to_video", "interpolation"), autoencoder=AutoencoderConfig(kind="wan", path=str(wan)),
        text_encoder=TextEncoderConfig(kind="bytes", dim=16, max_tokens=6),
        image_encoder=ImageEncoderConfig(path=str(make_clip_vision(folder / "clip"))),
    )  # fmt: skip
    encode(cfg)
    return folder, cfg


def stored(folder: Path) -> dict[str, LatentSample]:
    """What a dataset holds of each file."""
    dataset = open_dataset(str(folder))
    return {info.source: ShardReader(dataset, None).read(info.index) for info in dataset.samples}


def pixels_of(folder: Path) -> torch.Tensor:
    """The frames of the clip as they are encoded, uint8 [T, H, W, 3]."""
    clips = read_clip_list(folder / "list")
    planned = ClipSource(clips.root, ClipLimits(1536, 9, (1, 2, 2)), 4, 8).fitting(clips.rows)
    return read_clip(next(clip for clip in planned if not clip.row.is_image))


@torch.no_grad()
def test_they_are_what_wan_encodes(made: tuple[Path, EncodeRun]) -> None:
    folder, _ = made
    assert open_dataset(str(folder / "out")).info.given_latents == ("image_to_video", "interpolation")
    samples = stored(folder / "out")
    video = to_video(pixels_of(folder))
    wan = AutoencoderKLWan.from_pretrained(folder / "wan")
    clip = samples["clip.mp4"]
    for task, kept in (("image_to_video", [0]), ("interpolation", [0, 8])):
        seen = torch.zeros_like(video)
        seen[:, kept] = video[:, kept]
        raw = wan.encode(seen[None]).latent_dist.mode()[0]
        expected = (raw - torch.tensor(MEAN)[:, None, None, None]) / torch.tensor(STD)[:, None, None, None]
        found = clip.given[task]
        assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))
        assert torch.equal(found[:, 0], clip.latent[:, 0])  # the autoencoder is causal
        assert float((found - clip.latent)[:, 1:].abs().max()) > 0.5  # and what follows is not the clip's
    one, both = clip.given["image_to_video"], clip.given["interpolation"]
    assert torch.equal(one[:, 1], both[:, 1]) and float((one - both)[:, 2].abs().max()) > 0.5
    image = samples["image.png"]
    assert torch.equal(image.given["interpolation"], image.latent)


@torch.no_grad()
def test_the_embedding_of_the_first_frame_is_what_clip_gives(made: tuple[Path, EncodeRun]) -> None:
    folder, _ = made
    assert open_dataset(str(folder / "out")).info.image_dim == 20
    samples, frames = stored(folder / "out"), pixels_of(folder)
    model = CLIPVisionModel.from_pretrained(folder / "clip" / "image_encoder")
    processor = CLIPImageProcessor.from_pretrained(folder / "clip" / "image_processor")

    def embedding(number: int) -> torch.Tensor:
        inputs = processor(Image.fromarray(frames[number].numpy()), return_tensors="pt")
        return model(**inputs, output_hidden_states=True).hidden_states[-2][0]

    found = samples["clip.mp4"].image
    assert found is not None and samples["image.png"].image is not None
    errors = [float((found - embedding(number)).abs().max() / found.abs().max()) for number in (0, 8)]
    print(f"first frame {errors[0]:.1e}, last {errors[1]:.1e}")
    assert errors[0] < 1e-3 < 1e-2 < errors[1]  # float16


def test_the_image_encoder_is_fixed_with_the_dataset(made: tuple[Path, EncodeRun], tmp_path: Path) -> None:
    folder, cfg = made
    with pytest.raises(ConfigError, match=r"^image_encoder\.path: .*was begun with"):
        check_place(dataclasses.replace(cfg, image_encoder=ImageEncoderConfig()))
    shutil.copytree(folder / "clip", tmp_path / "moved")
    moved = dataclasses.replace(cfg, image_encoder=ImageEncoderConfig(path=str(tmp_path / "moved")))
    assert encode(moved).new_samples == 0
    kept = json.loads((folder / "out" / "encoders" / "clip_vision.json").read_text())
    assert kept["dim"] == 20 and kept["processor"]["crop_size"] == {"height": 16, "width": 16}
    # a dataset begun when there was no such setting is as one without any
    told = json.loads((folder / "out" / "encode.json").read_text())
    del told["settings"]["image_encoder"]
    (tmp_path / "encode.json").write_text(json.dumps(told))
    older = dataclasses.replace(cfg, out=str(tmp_path), image_encoder=ImageEncoderConfig())
    assert check_place(older)[1]
    with pytest.raises(ConfigError, match=r"^image_encoder\.path=.*was begun with null"):
        check_place(dataclasses.replace(older, image_encoder=moved.image_encoder))


def test_folders_that_hold_no_image_encoder(tmp_path: Path) -> None:
    make_clip_vision(tmp_path)
    encoder = build_image_encoder(str(tmp_path / "image_encoder"))  # the processor lies beside it
    picture = moving_square(1, 20, 30)[0]
    assert encoder.encode(picture).shape == (5, 20)
    shutil.rmtree(tmp_path / "image_processor")
    with pytest.raises(ConfigError, match=r"^image_encoder\.path=.*no preprocessor_config\.json is in it"):
        build_image_encoder(str(tmp_path))
    config = tmp_path / "image_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "siglip_vision_model"}))
    (tmp_path / "image_encoder" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="a model of type siglip_vision_model"):
        build_image_encoder(str(tmp_path))
    with pytest.raises(ConfigError, match="no such folder"):
        build_image_encoder(str(tmp_path / "gone"))


def test_they_are_fixed_with_the_dataset(made: tuple[Path, EncodeRun], tmp_path: Path) -> None:
    folder, cfg = made
    assert check_place(cfg)[1]
    for other in (None, ("image_to_video",)):
        with pytest.raises(ConfigError, match=r"^given_latents.*give given_latents=\[\"image_to_video\",\"interpol"):
            check_place(dataclasses.replace(cfg, given_latents=other))
    # a dataset begun when there was no such setting is as one without any
    told = json.loads((folder / "out" / "encode.json").read_text())
    del told["settings"]["given_latents"]
    (tmp_path / "encode.json").write_text(json.dumps(told))
    older = dataclasses.replace(cfg, out=str(tmp_path), given_latents=None)
    assert check_place(older)[1]
    with pytest.raises(ConfigError, match=r"^given_latents.*was begun with null"):
        check_place(dataclasses.replace(older, given_latents=("interpolation",)))


def test_they_are_of_the_size_of_the_latent() -> None:
    latent = torch.zeros(4, 3, 2, 2).numpy()
    assert given_of_row({"latent": latent}) == {}
    assert list(given_of_row({"latent": latent, "given_interpolation": latent})) == ["interpolation"]
    with pytest.raises(ValueError, match=r"given for image_to_video is \(4, 1, 2, 2\), and the latent \(4, 3, 2, 2\)"):
        given_of_row({"latent": latent, "given_image_to_video": latent[:, :1]})


def test_a_latent_that_is_not_finite_is_found(made: tuple[Path, EncodeRun], monkeypatch: pytest.MonkeyPatch) -> None:
    """By encode, which drops the clip, as it does for the clip's own."""
    folder, cfg = made
    monkeypatch.setattr("megavideo.encoders.encode.unit.given_video", lambda video, task: video * float("nan"))
    out = folder / "spoiled"
    report = encode(dataclasses.replace(cfg, out=str(out), given_latents=("image_to_video",)))
    assert [clip.file for clip in report.dropped] == ["clip.mp4"] and "not finite" in report.dropped[0].reason
    with pytest.raises(DataError, match="no version 2"):
        open_dataset(str(out), version=2)
