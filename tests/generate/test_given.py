"""Samples of what is given: a first frame, the beginning of a video, both ends, or all but what a mask shows white."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from megavideo.cli.main import main
from megavideo.cli.verbs.sample import GivenPrompt, read_prompts
from megavideo.config.given import GivenFiles, mode_of
from megavideo.config.load import load
from megavideo.config.schema.sample import Mode, SampleRun
from megavideo.config.schema.train import TrainRun
from megavideo.data.clips.write_video import write_video
from megavideo.data.patches import patchify, token_grid, unpatchify
from megavideo.diffusion.conditions import condition_mask
from megavideo.diffusion.randomness import SampleKey
from megavideo.encoders.encode.clips import to_video
from megavideo.encoders.encode.half import as_stored
from megavideo.encoders.video.pca import fit_pca
from megavideo.errors import ConfigError, DataError
from megavideo.generate.given import GivenReader, check_trained
from megavideo.generate.loaded_run import LoadedRun
from megavideo.generate.run import sample, sample_videos
from megavideo.generate.sampler import GivenTokens, Guidance, Predictor, Prompt, sample_latents
from megavideo.generate.schedulers import build_scheduler
from megavideo.generate.videos import to_pixels
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config
from megavideo.types import Grid, PackedBatch
from tests.generate.test_generate import opened, settings

PATCH = (1, 2, 2)
LATENT = Grid(3, 2, 4)  # of 9 frames of 16 x 32
SIZE = {"frames": 9, "height": 16, "width": 32}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    folder = tmp_path_factory.mktemp("runs")
    config = micro_config(name="run", output=folder, data__uri="gone", diffusion="flow_conditions")
    write_run(config)
    return config


@pytest.fixture(scope="module")
def run(config: TrainRun) -> LoadedRun:
    return opened(config)


def moving(frames: int, height: int = 16, width: int = 32) -> np.ndarray:
    """A smooth picture that moves: uint8 [T, H, W, 3]."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin((x + 2 * t) / 7), np.cos((y + t) / 5), np.sin((x + y - t) / 9)]
    return np.stack([127.5 + 100 * wave for wave in waves], axis=-1).round().astype(np.uint8)


def picture(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """An image, another one, a video of 15 frames, and a mask that is white on the right half."""
    white = np.zeros((16, 32, 3), np.uint8)
    white[:, 16:] = 255
    write_video(tmp_path / "clip.mp4", moving(15), 8.0)
    return {
        "image": picture(tmp_path / "image.png", moving(1)[0]),
        "last_image": picture(tmp_path / "last.png", moving(9)[-1]),
        "video": str(tmp_path / "clip.mp4"),
        "mask": picture(tmp_path / "mask.png", white),
    }


def reader(run: LoadedRun, patch: tuple[int, int, int] = PATCH, fps: float = 8.0, **given: Any) -> GivenReader:
    cfg = settings(**SIZE | given)
    return GivenReader(cfg, run.encoders.autoencoder, patch, LATENT if patch == PATCH else Grid(4, 2, 4), fps)


def grids(tokens: GivenTokens, patch: tuple[int, int, int] = PATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Given tokens as a latent [C, T, H, W], and which are given [t, h, w]."""
    grid = token_grid(LATENT, patch)
    return unpatchify(tokens.tokens, grid, patch), tokens.given.view(grid.t, grid.h, grid.w)


def encoded(run: LoadedRun, pixels: np.ndarray) -> torch.Tensor:
    return as_stored(run.encoders.autoencoder.encode(to_video(torch.from_numpy(pixels))))


CHOICES: list[tuple[tuple[str, ...], str | None, Mode]] = [
    (("image",), None, "image_to_video"),
    (("image", "last_image"), None, "interpolation"),
    (("video",), "extension", "extension"),
    (("video",), "interpolation", "interpolation"),
    (("video", "mask"), None, "inpainting"),
]


@pytest.mark.parametrize(("names", "mode", "expected"), CHOICES)
def test_the_mode_follows_where_one_makes_sense(names: tuple[str, ...], mode: Mode | None, expected: Mode) -> None:
    assert mode_of(GivenFiles(**dict.fromkeys(names, "x")), settings(mode=mode)) == expected


@pytest.mark.parametrize(
    ("words", "field", "part"),
    [
        ("video=a", "mode", "leaves a choice"),
        ("image=a mode=extension", "mode", "does not take what is given (image)"),
        ("image=a video=b", "video", "image and video together make no task"),
        ("mask=a", "mask", "make no task"),
        ("image=a mask=b", "frames", "one image is inpainted"),
        ("image=a given_frames=5", "given_frames", "no effect without mode=extension"),
    ],
)
def test_files_and_settings_that_do_not_fit(words: str, field: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(SampleRun, "sample", ["ckpt=a", "out=b.mp4", *words.split()])
    assert caught.value.field == field and part in caught.value.rule and caught.value.remedy


def test_a_mode_without_files_has_no_effect(config: TrainRun, tmp_path: Path) -> None:
    cfg = settings(ckpt=f"{config.output}/run", out=str(tmp_path / "a.mp4"), mode="extension")
    with pytest.raises(ConfigError, match=r"mode='extension': has no effect without an image or a video"):
        sample(cfg, ["a"], "")


@pytest.mark.parametrize("scheduler", ["euler", "unipc", "dpm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_latents_are_clean_at_every_step_and_come_out_bit_equal(
    config: TrainRun, files: dict[str, str], scheduler: str, dtype: torch.dtype
) -> None:
    run = opened(config, dtype=dtype)
    one = reader(run).read(GivenFiles(image=files["image"]), "image_to_video")
    ends = reader(run).read(GivenFiles(files["image"], files["last_image"]), "interpolation")
    text, negative = run.encoders.text_encoder.encode(["a red shape", ""])
    given = (one, ends, None)
    prompts = [Prompt(text, SampleKey(0, str(i), 0), tokens) for i, tokens in enumerate(given)]
    sampler = build_scheduler(scheduler, run.config.diffusion, 3.0)
    sampler.set_timesteps(4)
    seen: list[PackedBatch] = []
    plain = Predictor.of(run.model)

    def predict(pack: PackedBatch) -> torch.Tensor:
        seen.append(pack)
        return plain.predict(pack)

    model = dataclasses.replace(plain, predict=predict)
    grid = token_grid(LATENT, PATCH)
    latents = sample_latents(model, sampler, prompts, Guidance(5.0, negative), grid, PATCH, 8.0)
    for latent, tokens in zip(latents, given, strict=True):
        if tokens is not None:
            assert torch.equal(patchify(latent, PATCH)[tokens.given], tokens.tokens[tokens.given])
    assert len(seen) == 4
    for pack in seen:  # with the prompt and without it
        masks = pack.condition_mask.view(2, 3, grid.num_tokens)
        tokens = pack.tokens.view(2, 3, grid.num_tokens, -1)
        assert torch.equal(masks[0], masks[1]) and not masks[:, 2].any()
        for i, wanted in enumerate((one, ends)):
            assert torch.equal(masks[0, i], wanted.given)
            assert torch.equal(tokens[0, i][wanted.given], wanted.tokens[wanted.given].to(dtype))


def test_what_is_given_changes_the_rest(run: LoadedRun, files: dict[str, str]) -> None:
    tokens = reader(run).read(GivenFiles(image=files["image"]), "image_to_video")
    cfg = settings(**SIZE)
    (free,) = sample_videos(run, cfg, ["a"], "", first=0)
    (bound,) = sample_videos(run, cfg, ["a"], "", first=0, given=[tokens])
    assert np.abs(free[5:].astype(int) - bound[5:].astype(int)).mean() > 0.5


def test_the_first_frame_is_the_image(config: TrainRun, tmp_path: Path) -> None:
    """Through an autoencoder that keeps such pictures: its own loss, and no other, is between the two."""
    grain = np.random.default_rng(0).normal(0, 4, (16, 32, 3))
    pixels = (moving(1)[0] + grain).clip(0, 255).astype(np.uint8)
    clips = [to_video(torch.from_numpy(np.roll(moving(9), place, axis=2))) for place in (0, 5, 11)]
    autoencoder = fit_pca(16, 3, lambda most: clips[:most])
    wide = micro_config(
        name="wide", output=tmp_path, data__uri="x", diffusion="flow_conditions", model__latent_channels=16
    )
    write_run(wide)
    run = opened(wide)
    run = dataclasses.replace(run, encoders=dataclasses.replace(run.encoders, autoencoder=autoencoder))
    tokens = reader(run).read(GivenFiles(image=picture(tmp_path / "a.png", pixels)), "image_to_video")
    (video,) = sample_videos(run, settings(**SIZE), ["a"], "", first=0, given=[tokens])

    def psnr(frame: np.ndarray) -> float:
        return float(10 * np.log10(255**2 / np.square(frame.astype(float) - pixels).mean()))

    kept = to_pixels(autoencoder.decode(autoencoder.encode(to_video(torch.from_numpy(pixels[None])))), (1, 16, 32))
    print(f"PSNR of the first frame: {psnr(video[0]):.1f} dB, of the autoencoder alone {psnr(kept[0]):.1f} dB")
    assert psnr(video[0]) > 30 and psnr(video[0]) == pytest.approx(psnr(kept[0]), abs=0.05)


def test_modes_give_the_tokens_that_training_gives(run: LoadedRun, files: dict[str, str]) -> None:
    grid, key = token_grid(LATENT, PATCH), SampleKey(0, "a", 0)
    latent, given = grids(reader(run).read(GivenFiles(image=files["image"]), "image_to_video"))
    assert torch.equal(given.flatten(), condition_mask("image_to_video", key, grid))
    assert torch.equal(latent[:, :1], encoded(run, moving(1)))
    latent, given = grids(reader(run).read(GivenFiles(files["image"], files["last_image"]), "interpolation"))
    assert torch.equal(given.flatten(), condition_mask("interpolation", key, grid))
    assert torch.equal(latent[:, -1], encoded(run, moving(9)[-1:].repeat(5, axis=0))[:, -1])
    latent, given = grids(reader(run).read(GivenFiles(video=files["video"], mask=files["mask"]), "inpainting"))
    assert given[:, :, 0].all() and not given[:, :, 1].any()


def clip(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize(("asked", "tokens"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_extension_takes_whole_latent_frames(
    run: LoadedRun, files: dict[str, str], asked: int, tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    used = 1 + 4 * (tokens - 1)
    with caplog.at_level("WARNING"):
        found = reader(run, given_frames=asked).read(GivenFiles(video=files["video"]), "extension")
    latent, given = grids(found)
    assert given[:tokens].all() and not given[tokens:].any()
    # the video's own colours, within what two ways of converting them differ by
    assert torch.allclose(latent[:, :tokens], encoded(run, clip(files["video"])[:used]), atol=0.1)
    said = [record.getMessage() for record in caplog.records if record.name == "megavideo.generate.given"]
    assert said == (
        []
        if used == asked
        else [f"{files['video']}: of {asked} frames the first {used} are taken, which fill latent frames"]
    )


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"given_frames": 16}, r"given_frames=16: .*clip\.mp4 has 15 frames at 8 a second"),
        ({}, r"frames=9: 13 frames are given, and none is left"),
        ({"given_frames": 9}, r"frames=9: 9 frames are given, and none is left"),
    ],
)
def test_extensions_that_do_not_fit(run: LoadedRun, files: dict[str, str], given: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        reader(run, **given).read(GivenFiles(video=files["video"]), "extension")


def test_videos_are_brought_to_the_rate_of_the_samples(run: LoadedRun, files: dict[str, str]) -> None:
    halved = reader(run, given_frames=5, fps=4.0).read(GivenFiles(video=files["video"]), "extension")
    latent, _ = grids(halved)
    assert torch.allclose(latent[:, :2], encoded(run, clip(files["video"])[:9:2]), atol=0.1)


def test_a_token_is_given_only_where_no_pixel_of_it_is_made(
    run: LoadedRun, files: dict[str, str], tmp_path: Path
) -> None:
    """Of a larger mask one white pixel counts; of a video of masks, a frame counts for its own token in time."""
    one = np.zeros((64, 128, 3), np.uint8)
    one[3, 70] = 255
    still = GivenFiles(video=files["video"], mask=picture(tmp_path / "one.png", one))
    _, given = grids(reader(run).read(still, "inpainting"))
    assert given[:, 0, 0].all() and not given[:, 0, 1].any()
    tall = np.zeros((9, 64, 128, 3), np.uint8)
    tall[6, :16, 64:] = 255
    write_video(tmp_path / "mask.mp4", tall, 8.0)
    _, given = grids(reader(run).read(GivenFiles(video=files["video"], mask=str(tmp_path / "mask.mp4")), "inpainting"))
    assert given.tolist() == [[[True, True]], [[True, True]], [[True, False]]]


def test_one_image_is_inpainted(run: LoadedRun, files: dict[str, str]) -> None:
    given = GivenReader(settings(frames=1), run.encoders.autoencoder, PATCH, Grid(1, 2, 4), 8.0)
    tokens = given.read(GivenFiles(image=files["image"], mask=files["mask"]), "inpainting")
    assert tokens.given.tolist() == [True, False]
    assert torch.equal(unpatchify(tokens.tokens, Grid(1, 1, 2), PATCH), encoded(run, moving(1)))


def test_masks_that_do_not_fit(run: LoadedRun, files: dict[str, str], tmp_path: Path) -> None:
    def read(pixels: np.ndarray) -> None:
        mask = picture(tmp_path / "own.png", pixels)
        reader(run).read(GivenFiles(video=files["video"], mask=mask), "inpainting")

    with pytest.raises(DataError, match=r"own\.png: a mask of 20x20 pixels does not lie over .*clip\.mp4 with 32x16"):
        read(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ConfigError, match="nothing is to be made"):
        read(np.zeros((16, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match="every token has pixels that are to be made"):
        read(np.full((16, 32, 3), 255, np.uint8))
    with pytest.raises(ConfigError, match=r"frames=17: .*clip\.mp4 has 15 frames"):
        long = dataclasses.replace(reader(run), cfg=settings(**SIZE | {"frames": 17}), latent=Grid(5, 2, 4))
        long.read(GivenFiles(video=files["video"], mask=files["mask"]), "inpainting")


@pytest.mark.parametrize(("name", "content"), [("gone.png", None), ("text.png", b"no picture")])
def test_a_file_that_is_no_picture_is_named(run: LoadedRun, tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        reader(run).read(GivenFiles(image=str(tmp_path / name)), "image_to_video")


def test_a_patch_of_two_latent_frames_holds_the_picture_still(run: LoadedRun, files: dict[str, str]) -> None:
    tokens = reader(run, (2, 2, 2)).read(GivenFiles(image=files["image"]), "image_to_video")
    assert tokens.given.tolist() == [True, True, False, False]
    latent = unpatchify(tokens.tokens, Grid(2, 1, 2), (2, 2, 2))
    assert torch.equal(latent[:, :2], encoded(run, moving(1).repeat(5, axis=0)))


def test_a_mode_that_was_never_trained_is_refused(tmp_path: Path, files: dict[str, str], config: TrainRun) -> None:
    plain = micro_config(name="plain", output=tmp_path, data__uri="gone")
    write_run(plain)
    out = tmp_path / "a.mp4"
    cfg = settings(ckpt=str(tmp_path / "plain"), out=str(out), image=files["image"])
    rule = r"mode='image_to_video': the run plain was never trained on it \(diffusion\.conditions\.image_to_video is 0"
    with pytest.raises(ConfigError, match=rule):
        sample(cfg, ["a"], "")
    assert not out.exists()
    check_trained(config, "inpainting")


def test_a_mode_of_another_stage_is_trained() -> None:
    config = micro_config(
        name="staged", data__uri="x", curriculum="sora", stage="1", diffusion__conditions__image_to_video=0.0
    )
    names = list(config.stages)
    config.stages[names[-1]]["diffusion"]["conditions"]["image_to_video"] = 0.3
    check_trained(config, "image_to_video")
    config.stages[names[-1]]["diffusion"]["conditions"]["image_to_video"] = 0.0
    with pytest.raises(ConfigError, match="in every stage"):
        check_trained(config, "image_to_video")


def test_the_command_samples_from_an_image(config: TrainRun, files: dict[str, str], tmp_path: Path) -> None:
    words = [f"ckpt={config.output}/run", "steps=2", "frames=6", "height=20", "width=30", f"image={files['image']}"]
    assert main(["sample", *words, f"out={tmp_path}/a.mp4", "--prompt", "a red ball"]) == 0
    assert clip(str(tmp_path / "a.mp4")).shape == (6, 20, 30, 3)


def test_a_list_of_prompts_names_files_of_its_own(config: TrainRun, files: dict[str, str], tmp_path: Path) -> None:
    rows = [{"prompt": "a", "image": "image.png"}, {"prompt": "b"}, {"prompt": "c", "image": files["last_image"]}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert read_prompts(tmp_path / "list.json") == (
        GivenPrompt("a", GivenFiles(image=files["image"])),
        GivenPrompt("b"),
        GivenPrompt("c", GivenFiles(image=files["last_image"])),
    )
    words = [f"ckpt={config.output}/run", "steps=2", "frames=5", "height=16", "width=32", f"out={tmp_path}/out"]
    assert main(["sample", *words, "--prompts", str(tmp_path / "list.json"), f"image={files['last_image']}"]) == 0
    own, shared, last = (clip(str(path))[0].astype(int) for path in sorted((tmp_path / "out").glob("*.mp4")))
    assert np.abs(shared - last).mean() < 1 < np.abs(own - last).mean()


def test_a_list_with_an_unknown_word_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[{"prompt": "a", "picture": "b.png"}]')
    with pytest.raises(DataError, match=r"list\.json: cannot be read as JSON.*picture.*no such field"):
        read_prompts(tmp_path / "list.json")
