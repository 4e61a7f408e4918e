"""From the files that a sample is given to clean latent tokens, and which they are, or to further input channels.

Shape legend: N tokens of the sample, P patch width, C latent channels, T/H/W frames and sides in pixels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megavideo.config.build import build
from megavideo.config.given import GivenFiles, mode_of
from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.sample import Mode, SampleRun
from megavideo.config.schema.train import TrainRun
from megavideo.data.clips.resize import FrameWindow
from megavideo.data.patches import patchify, token_grid
from megavideo.diffusion.conditions import given_channels
from megavideo.encoders.encode.clips import to_video
from megavideo.encoders.encode.half import as_stored
from megavideo.encoders.image_encoder import ImageEncoder
from megavideo.encoders.video.autoencoder import VideoAutoencoder
from megavideo.errors import ConfigError
from megavideo.generate.given_frames import num_frames, read_clip, read_made, read_picture
from megavideo.generate.sampler import GivenChannels, GivenTokens
from megavideo.types import Grid

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GivenReader:
    """Reads given files as latents of one size: `latent` is that of the samples, `fps` their frame rate.

    `image_encoder` is there for models that are told an image's embedding.
    """

    cfg: SampleRun
    autoencoder: VideoAutoencoder
    patch: tuple[int, int, int]
    latent: Grid
    fps: float
    image_encoder: ImageEncoder | None = None

    def read(self, files: GivenFiles, mode: Mode) -> GivenTokens:
        """The given tokens of one sample.

        Raises DataError where a file cannot be used, and ConfigError where it does not fit the asked size.
        """
        modes = {
            "image_to_video": self._image_to_video,
            "extension": self._extension,
            "interpolation": self._interpolation,
            "inpainting": self._inpainting,
        }
        latent, given = modes[mode](files)
        return GivenTokens(patchify(as_stored(latent), self.patch), given.flatten())

    def tell(self, files: GivenFiles, mode: Mode, model: ModelConfig) -> GivenChannels:
        """What a model with given channels is told of one sample: frames of a video that is grey but for them.

        The mode is `image_to_video` or `interpolation`. Raises as `read`.
        """
        self._check_tokens(2, "one of which is given")
        frames, asked = self._num_frames(self.latent.t), self.cfg.frames
        video = torch.zeros(3, frames, *self._size)
        if mode == "interpolation":
            if asked != frames:
                before = self._num_frames(self.latent.t - self.patch[0])
                rule = "the last frame is given, and is the last of a latent frame"
                raise ConfigError("frames", asked, rule, f"take frames={before} or {frames}")
            first, last = self._both_ends(files)
            video[:, -1:] = to_video(torch.from_numpy(last))
        else:
            first = self._picture(files.image)
        video[:, :1] = to_video(torch.from_numpy(first))
        told = patchify(as_stored(self.autoencoder.encode(video)), self.patch)
        image = None if model.image_dim is None else self._embedding(first[0], model.image_dim)
        return GivenChannels(given_channels(told, mode, self._grid, model), image)

    def _embedding(self, picture: np.ndarray, width: int) -> torch.Tensor:
        """[I, E] of a picture [H, W, 3], as it is in the video: so training saw them."""
        encoder = self.image_encoder
        if encoder is None or encoder.dim != width:
            has = "no image encoder" if encoder is None else f"an image encoder of width {encoder.dim}"
            rule = f"the run keeps {has}, and its model has model.image_dim={width}"
            remedy = "import the whole pipeline, or train on a dataset that was encoded with image_encoder.path="
            raise ConfigError("image", self.cfg.image, rule, remedy)
        return as_stored(encoder.encode(picture))

    @property
    def _size(self) -> tuple[int, int]:
        ratio = self.autoencoder.space_ratio
        return self.latent.h * ratio, self.latent.w * ratio

    @property
    def _grid(self) -> Grid:
        return token_grid(self.latent, self.patch)

    def _num_frames(self, latent_frames: int) -> int:
        return 1 + (latent_frames - 1) * self.autoencoder.time_ratio

    def _image_to_video(self, files: GivenFiles) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_tokens(2, "one of which is given")
        latent, given = self._nothing()
        latent[:, : self.patch[0]] = self._first(self._picture(files.image))
        given[0] = True
        return latent, given

    def _extension(self, files: GivenFiles) -> tuple[torch.Tensor, torch.Tensor]:
        path, step = Path(str(files.video)), self.patch[0]
        there = num_frames(path, self.fps)
        asked = there if self.cfg.given_frames is None else self.cfg.given_frames
        if asked > there:
            rule = f"{path} has {there} frames at {self.fps:g} a second"
            raise ConfigError("given_frames", asked, rule, f"take at most {there}, or a longer video")
        tokens = (1 + (asked - 1) // self.autoencoder.time_ratio) // step
        used = self._num_frames(tokens * step)
        if tokens < 1:
            rule, needed = f"{asked} given frames do not fill one token", self._num_frames(step)
            raise ConfigError("given_frames", asked, rule, f"give {needed} frames or more")
        if tokens >= self._grid.t:
            rule = f"{used} frames are given, and none is left to be made"
            raise ConfigError("frames", self.cfg.frames, rule, "take a larger number, or fewer given_frames=")
        if used < asked:
            _log.warning("%s: of %d frames the first %d are taken, which fill latent frames", path, asked, used)
        latent, given = self._nothing()
        latent[:, : tokens * step] = self._encoded(read_clip(path, self._size, self.fps, FrameWindow(0, used)))
        given[:tokens] = True
        return latent, given

    def _interpolation(self, files: GivenFiles) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_tokens(3, "the first and the last of which are given")
        first, last = self._both_ends(files)
        latent, given = self._nothing()
        step = self.patch[0]
        latent[:, :step] = self._first(first)
        # a latent frame after the first holds several frames, in which the picture stands still
        latent[:, -step:] = self._encoded(last.repeat(self._num_frames(1 + step), axis=0))[:, -step:]
        given[0] = given[-1] = True
        return latent, given

    def _both_ends(self, files: GivenFiles) -> tuple[np.ndarray, np.ndarray]:
        if files.video is None:
            return self._picture(files.image), self._picture(files.last_image)
        path = Path(files.video)
        end = num_frames(path, self.fps) - 1
        first, last = (read_clip(path, self._size, self.fps, FrameWindow(at, 1)) for at in (0, end))
        return first, last

    def _inpainting(self, files: GivenFiles) -> tuple[torch.Tensor, torch.Tensor]:
        frames, mask = self.cfg.frames, Path(str(files.mask))
        if files.video is None:
            path = Path(str(files.image))
            pixels = self._picture(files.image)
        else:
            path = Path(files.video)
            if (there := num_frames(path, self.fps)) < frames:
                rule = f"{path} has {there} frames at {self.fps:g} a second"
                raise ConfigError("frames", frames, rule, f"take frames={there}, or a longer video")
            pixels = read_clip(path, self._size, self.fps, FrameWindow(0, frames))
        made = read_made(mask, path, self._size, self.fps, frames)
        given = ~self._token_any(torch.from_numpy(self._whole(made)))
        for few, rule in ((given, "every token has pixels that are to be made"), (~given, "nothing is to be made")):
            if not bool(few.any()):
                raise ConfigError("mask", str(mask), rule, "white is to be made, black stays: draw some of both")
        return self._encoded(self._whole(pixels)), given

    def _first(self, picture: np.ndarray) -> torch.Tensor:
        """Latent of a picture that begins a video; where a token holds several latent frames, it stands still."""
        return self._encoded(picture.repeat(self._num_frames(self.patch[0]), axis=0))

    def _picture(self, path: str | None) -> np.ndarray:
        return read_picture(Path(str(path)), self._size)

    def _encoded(self, pixels: np.ndarray) -> torch.Tensor:
        return self.autoencoder.encode(to_video(torch.from_numpy(np.ascontiguousarray(pixels))))

    def _nothing(self) -> tuple[torch.Tensor, torch.Tensor]:
        grid, latent = self._grid, self.latent
        shape = (self.autoencoder.latent_channels, latent.t, latent.h, latent.w)
        return torch.zeros(shape), torch.zeros(grid.t, grid.h, grid.w, dtype=torch.bool)

    def _whole(self, frames: np.ndarray) -> np.ndarray:
        """Frames [T, ...] to as many as the latent has; the last is held for those that are cut off again."""
        missing = self._num_frames(self.latent.t) - len(frames)
        return np.concatenate([frames, frames[-1:].repeat(missing, axis=0)])

    def _token_any(self, pixels: torch.Tensor) -> torch.Tensor:
        """Which tokens [t, h, w] hold any of the pixels [T, H, W]."""
        grid, (_, patch_h, patch_w) = self._grid, self.patch
        ratio = self.autoencoder.space_ratio
        # the first latent frame holds one frame; as if it were repeated, all hold as many
        by_time = torch.cat([pixels[:1].repeat(self.autoencoder.time_ratio - 1, 1, 1), pixels])
        shape = (grid.t, -1, grid.h, patch_h * ratio, grid.w, patch_w * ratio)
        return by_time.view(shape).permute(0, 2, 4, 1, 3, 5).flatten(3).any(dim=3)

    def _check_tokens(self, least: int, what: str) -> None:
        if self._grid.t < least:
            frames = self._num_frames((least - 1) * self.patch[0]) + 1
            rule = f"needs {least} tokens in time, {what}"
            raise ConfigError("frames", self.cfg.frames, rule, f"take frames={frames} or more")


def files_for_all(cfg: SampleRun) -> GivenFiles:
    """The files of the settings, which every prompt has that names none of its own."""
    return GivenFiles(cfg.image, cfg.last_image, cfg.video, cfg.mask)


def read_given(
    files: GivenFiles, cfg: SampleRun, config: TrainRun, reader: GivenReader
) -> GivenTokens | GivenChannels | None:
    """What a prompt with these files is given, in the form that the run's model takes; None where there are none.

    Raises ConfigError where the run was never trained on the task that they make, and as `GivenReader.read`.
    """
    mode = mode_of(files, cfg)
    if mode is None:
        _check_free(config, cfg)
        return None
    check_trained(config, mode)
    return reader.tell(files, mode, config.model) if config.model.given_channels else reader.read(files, mode)


def check_trained(config: TrainRun, mode: Mode) -> None:
    """Raise ConfigError where no stage of a run gives the task a weight."""
    if _is_trained(config, mode):
        return
    raise ConfigError(
        "mode",
        mode,
        f"the run {config.name} was never trained on it (diffusion.conditions.{mode} is 0 in every stage)",
        f"sample a run with diffusion.conditions.{mode}= above 0, as diffusion=flow_conditions has",
    )


def _check_free(config: TrainRun, cfg: SampleRun) -> None:
    """Raise ConfigError for a video of no given frame by a model that is told one, and never was without."""
    if config.model.given_channels and cfg.frames > 1 and not _is_trained(config, "text"):
        rule = f"the run {config.name} was only trained on videos whose first frame is given"
        raise ConfigError("image", None, rule, "add image=FILE")


def _is_trained(config: TrainRun, task: str) -> bool:
    """Whether any stage of a run gives the task a weight."""
    stages = [config.diffusion, *(build(DiffusionConfig, stage["diffusion"]) for stage in config.stages.values())]
    return any(getattr(diffusion.conditions, task) > 0 for diffusion in stages)
