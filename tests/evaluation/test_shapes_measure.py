"""The scorer can succeed (truth, also blurred and noisy) and can fail (noise, emptiness, wrong prompts)."""

from __future__ import annotations

import functools
from pathlib import Path

import av
import numpy as np
import pytest

from megavideo.data.clips.write_video import write_video
from megavideo.evaluation.shapes.measure import Measured, gaussian_blur, measure
from megavideo.evaluation.shapes.render import draw_scene, render
from megavideo.evaluation.shapes.score import score
from megavideo.evaluation.shapes.spec import Combination, split

NUM_CLIPS = 144


@functools.cache
def _truth() -> tuple[list[Combination], list[np.ndarray]]:
    halves = split()
    combinations = [(halves.trained + halves.held_out)[i % 48] for i in range(NUM_CLIPS)]
    clips = [render(draw_scene(c, np.random.default_rng([11, i]))) for i, c in enumerate(combinations)]
    return combinations, clips


def _blur(frames: np.ndarray, sigma: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    blurred = np.stack(
        [np.stack([gaussian_blur(frame[..., k].astype(float), sigma) for k in range(3)], -1) for frame in frames]
    )
    return np.clip(blurred + rng.normal(0, noise, blurred.shape), 0, 255).astype(np.uint8)


def _blocks(frames: np.ndarray) -> np.ndarray:
    t, h, w, _ = frames.shape
    return frames.reshape(t, h // 8, 8, w // 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192).astype(float)


def _unblocks(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    t, h, w, _ = shape
    frames = blocks.reshape(t, h // 8, w // 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(shape)
    return np.clip(frames, 0, 255).astype(np.uint8)


def test_truth_through_mp4(tmp_path: Path) -> None:
    combinations, clips = _truth()
    read = []
    for number, frames in enumerate(clips):
        path = tmp_path / f"{number}.mp4"
        write_video(path, frames, 8.0)
        with av.open(str(path)) as container:
            read.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
    result = score(read, combinations)
    assert result.prompts == NUM_CLIPS
    assert min(result.colour, result.shape, result.motion) >= 0.99


def test_truth_blurred_and_noisy() -> None:
    combinations, clips = _truth()
    rng = np.random.default_rng(0)
    result = score([_blur(frames, 2.0, 12.0, rng) for frames in clips[:48]], combinations[:48])
    assert min(result.colour, result.motion) >= 0.95
    assert result.shape >= 0.85


def test_truth_through_block_pca() -> None:
    """Six numbers for each 8x8 block, themselves noisy: as a small linear autoencoder and a fair model give it."""
    combinations, clips = _truth()
    rng = np.random.default_rng(0)
    blocks = np.concatenate([_blocks(frames) for frames in clips[:24]])
    mean = blocks.mean(axis=0)
    basis = np.linalg.eigh(np.cov((blocks - mean).T))[1][:, -6:]
    smoothed = []
    for frames in clips:
        codes = (_blocks(frames) - mean) @ basis
        codes += rng.normal(0, 0.15, codes.shape) * codes.std(axis=0)
        smoothed.append(_unblocks(codes @ basis.T + mean, frames.shape))
    result = score(smoothed, combinations)
    assert min(result.colour, result.motion) >= 0.95
    assert result.shape >= 0.85


def test_noise_shows_nothing() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8) for _ in range(12)]
    soft = [np.clip(128 + 8 * (_blur(f, 4.0, 0.0, rng).astype(float) - 128), 0, 255).astype(np.uint8) for f in noise]
    grey = [np.repeat(frames[..., :1], 3, axis=-1) for frames in noise]
    for frames in noise + grey:
        assert measure(frames) == Measured(None, None, None)
    for frames in soft:  # coloured clouds may lean to one hue, but form no shape that travels
        assert measure(frames).motion is None and measure(frames).shape is None


@pytest.mark.parametrize("level", [0, 30, 255])
def test_empty_picture_shows_nothing(level: int) -> None:
    assert measure(np.full((9, 48, 80, 3), level, np.uint8)) == Measured(None, None, None)
    assert measure(np.full((9, 48, 80, 3), (level, 40, 200), np.uint8)) == Measured(None, None, None)


def test_wrong_prompts_score_chance() -> None:
    combinations, clips = _truth()
    order = np.random.default_rng(1).permutation(NUM_CLIPS)
    result = score([clips[i] for i in order], combinations)
    assert 0.1 < result.colour < 0.4 and 0.1 < result.motion < 0.4 and 0.2 < result.shape < 0.5


def test_still_and_reversed_clips() -> None:
    frames = render(draw_scene(Combination("blue", "triangle", "left"), np.random.default_rng(2)))
    assert measure(frames) == Measured("blue", "triangle", "left")
    assert measure(frames[::-1]) == Measured("blue", "triangle", "right")
    assert measure(np.repeat(frames[:1], 9, axis=0)) == Measured("blue", "triangle", None)
    assert measure(frames[:1]) == Measured("blue", "triangle", None)


def test_two_shapes_are_no_answer() -> None:
    rng = np.random.default_rng(4)
    scene = draw_scene(Combination("red", "circle", "up"), rng)
    frames = render(scene)
    doubled = np.concatenate([frames, frames], axis=2)
    assert measure(doubled).shape is None and measure(doubled).motion is None


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample"):
        score([], [])
