"""What an autoencoder is trained and measured on: clips of an ingested folder, or rendered shapes.

Every training sample is a function of (seed, step, place in the step) alone, whatever the number of processes.
Shape legend: B batch of this rank, S side of the square, T frames, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from megavideo.autoencoder.held_out import hold_out
from megavideo.config.schema.vae import VaeDataConfig
from megavideo.data.clips.resize import FrameWindow
from megavideo.data.ingest import read_clip_list
from megavideo.diffusion.randomness import SampleKey
from megavideo.encoders.encode.clips import ClipLimits, PlannedClip, plan_clips, read_clip, to_video
from megavideo.errors import ConfigError, DataError
from megavideo.evaluation.shapes.render import draw_scene, render
from megavideo.evaluation.shapes.spec import Combination, caption, split

_READERS = 2
_STEPS_AHEAD = 2
_ANY_LENGTH = 1 << 30
_HELD_OUT_FRAMES = 33
_TRIES = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutClip:
    """A clip that is only measured: its name, its video [3, T, H, W] in -1..1 and its frame rate."""

    name: str
    video: torch.Tensor
    fps: float


@dataclass(frozen=True)
class Draw:
    """One training sample: `clips` or `images`, its step and its place in the step."""

    kind: str
    step: int
    place: int

    def key(self, seed: int) -> SampleKey:
        """Its randomness."""
        return SampleKey(seed, f"{self.kind}/{self.place}", self.step)


class Corpus(Protocol):
    """A source of pictures."""

    def read(self, draw: Draw, frames: int) -> np.ndarray:
        """The square of one training sample, uint8 [T, S, S, 3]; DataError where it cannot be read."""
        ...

    def held_out(self) -> Iterator[HeldOutClip]:
        """The clips that are never trained on."""
        ...


@dataclass(frozen=True)
class VaeBatch:
    """This rank's part of a step: videos [B, 3, T, S, S] and their keys; clips and images are apart."""

    videos: tuple[torch.Tensor, ...]
    keys: tuple[tuple[SampleKey, ...], ...]


def open_corpus(config: VaeDataConfig, seed: int, time_ratio: int, space_ratio: int) -> Corpus:
    """The corpus of the settings; DataError where the folder is unusable, ConfigError where too little is left."""
    if config.src is None:
        return _Shapes(config, seed)
    assert config.area is not None
    limits = ClipLimits(config.area, _ANY_LENGTH, (1, 1, 1))
    clips = read_clip_list(Path(config.src).expanduser())
    planned, dropped = plan_clips(clips, limits, time_ratio, space_ratio)
    for clip in dropped:
        _log.warning("train-vae: dropped %s: %s", clip.file, clip.reason)
    return _Clips(config, seed, planned, time_ratio)


class _Shapes:
    """Moving shapes: trained combinations of colour, shape and motion, and held-out ones, all of 64 x 64 pixels."""

    def __init__(self, config: VaeDataConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def read(self, draw: Draw, frames: int) -> np.ndarray:
        rng = _numbers(draw.key(self._seed), "scene")
        return _cut(_shape_frames(rng, split().trained, frames)[0], frames, self._config.size, rng)

    def held_out(self) -> Iterator[HeldOutClip]:
        combinations = split().held_out
        for number in range(self._config.held_out):
            # apart from every seed of training: the combinations differ already
            rng = np.random.default_rng([number, len(combinations)])
            combination = combinations[number % len(combinations)]
            frames, fps = _shape_frames(rng, [combination], 1)
            yield HeldOutClip(caption(combination), to_video(torch.from_numpy(frames)), fps)


class _Clips:
    """Windows and squares of an ingested folder, apart from the clips that are held out."""

    def __init__(self, config: VaeDataConfig, seed: int, planned: Sequence[PlannedClip], time_ratio: int) -> None:
        self._config = config
        self._seed = seed
        fitting = [clip for clip in planned if min(clip.size.height, clip.size.width) >= config.size]
        moving = [clip for clip in fitting if clip.window.count >= config.frames]
        self._held_out, self._all = hold_out(fitting, moving if config.clips else fitting, config.held_out)
        self._moving = [clip for clip in self._all if clip.window.count >= config.frames]
        self._longest = 1 + (_HELD_OUT_FRAMES - 1) // time_ratio * time_ratio
        if not self._all or (config.clips and not self._moving):
            rule = f"{len(planned)} clips leave none to train on of {config.frames} frames and {config.size} pixels"
            raise ConfigError("data.held_out", config.held_out, rule, "hold out fewer, or take smaller squares")
        _log.info("train-vae: %d clips to train on, %d held out", len(self._all), len(self._held_out))

    def read(self, draw: Draw, frames: int) -> np.ndarray:
        rng = _numbers(draw.key(self._seed), "window")
        clips = self._moving if draw.kind == "clips" else self._all
        for _ in range(_TRIES):
            clip = clips[int(rng.integers(len(clips)))]
            start = int(rng.integers(clip.window.count - frames + 1))
            try:
                pixels = read_clip(_window(clip, start, frames)).numpy()
            except DataError as error:
                _log.warning("train-vae: %s: %s; another is taken", clip.row.file, error)
                continue
            return _cut(pixels, frames, self._config.size, rng)
        raise DataError(f"{_TRIES} clips in a row cannot be read. Remedy: ingest the folder again")

    def held_out(self) -> Iterator[HeldOutClip]:
        for clip in self._held_out:
            count = min(clip.window.count, self._longest)
            pixels = read_clip(_window(clip, (clip.window.count - count) // 2, count))
            name = clip.row.file if clip.row.start == 0 else f"{clip.row.file} from frame {clip.row.start}"
            yield HeldOutClip(name, to_video(pixels), clip.row.fps)


class BatchReader:
    """Reads this rank's samples of the coming steps ahead of their use."""

    def __init__(self, corpus: Corpus, config: VaeDataConfig, seed: int, rank: int, num_ranks: int) -> None:
        for name, count in (("clips", config.clips), ("images", config.images)):
            if count % num_ranks:
                raise ConfigError(
                    f"data.{name}", count, f"must divide by {num_ranks} processes", f"take data.{name}={num_ranks}"
                )
        self._corpus = corpus
        self._seed = seed
        kinds = (("clips", config.clips, config.frames), ("images", config.images, 1))
        self._shares = [
            (kind, range(rank * count // num_ranks, (rank + 1) * count // num_ranks), frames)
            for kind, count, frames in kinds
            if count
        ]

    @contextmanager
    def steps(self, begin: int, end: int) -> Iterator[Iterator[VaeBatch]]:
        """The batches of steps [begin, end), in a block at whose end no thread is left at work."""
        pool = ThreadPoolExecutor(_READERS)
        try:
            yield self._batches(pool, begin, end)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batches(self, pool: ThreadPoolExecutor, begin: int, end: int) -> Iterator[VaeBatch]:
        waiting: list[list[list[tuple[Draw, Future[np.ndarray]]]]] = []
        for step in range(begin, end + _STEPS_AHEAD):
            if step < end:
                waiting.append(
                    [
                        [(draw, pool.submit(self._corpus.read, draw, frames)) for draw in _draws(kind, step, places)]
                        for kind, places, frames in self._shares
                    ]
                )
            if step >= begin + _STEPS_AHEAD and waiting:
                yield self._batch(waiting.pop(0))
        for late in waiting:
            yield self._batch(late)

    def _batch(self, samples: list[list[tuple[Draw, Future[np.ndarray]]]]) -> VaeBatch:
        videos, keys = [], []
        for group in samples:
            videos.append(torch.stack([to_video(torch.from_numpy(future.result())) for _, future in group]))
            keys.append(tuple(draw.key(self._seed) for draw, _ in group))
        return VaeBatch(tuple(videos), tuple(keys))


def _draws(kind: str, step: int, places: range) -> list[Draw]:
    return [Draw(kind, step, place) for place in places]


def _window(clip: PlannedClip, start: int, count: int) -> PlannedClip:
    return replace(clip, window=FrameWindow(clip.window.start + start, count))


def _numbers(key: SampleKey, purpose: str) -> np.random.Generator:
    return np.random.default_rng(key.generator(purpose).initial_seed())


def _shape_frames(
    rng: np.random.Generator, combinations: Sequence[Combination], least: int
) -> tuple[np.ndarray, float]:
    """Frames uint8 [T, 64, 64, 3] of a scene of at least `least`, and its rate; other scenes are passed over."""
    while True:
        combination = combinations[int(rng.integers(len(combinations)))]
        scene = draw_scene(combination, rng)
        if scene.height == scene.width and scene.num_frames >= least:
            return render(scene), scene.fps


def _cut(pixels: np.ndarray, frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random run of `frames` and square of `size` of pixels [T, H, W, 3], mirrored half of the time."""
    count, height, width, _ = pixels.shape
    t, y, x = (int(rng.integers(room + 1)) for room in (count - frames, height - size, width - size))
    square = pixels[t : t + frames, y : y + size, x : x + size]
    return np.ascontiguousarray(square[:, :, ::-1] if rng.random() < 0.5 else square)


def corpus_name(config: VaeDataConfig) -> str:
    """What the report calls it."""
    return "rendered shapes" if config.src is None else Path(config.src).name
