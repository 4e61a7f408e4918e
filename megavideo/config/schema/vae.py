"""Settings of `megavideo train-vae`: the video autoencoder, what it is trained on and by which loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting
from megavideo.config.schema.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class VaeModelConfig:
    """The autoencoder: a new diffusers `AutoencoderKLWan`, or weights to go on from.

    `path` is a folder of an AutoencoderKLWan, AutoencoderKLHunyuanVideo, AutoencoderKLCogVideoX or
    AutoencoderKLLTXVideo; its own configuration then takes the place of all the other fields, which are null. A new one
    has `width` times `width_factors` channels at each scale, halves the picture between scales and the time where
    `halve_time` says so (twice in all), after `patch` x `patch` pixels were folded into channels. With `shortcuts`
    down- and upsampling have a parallel path without weights (the form of Wan 2.2), which learns faster.
    """

    path: str | None = None
    latent_channels: int | None = setting(None, minimum=1)
    width: int | None = setting(None, minimum=4)
    width_factors: tuple[int, ...] | None = setting(None, minimum=1)
    halve_time: tuple[bool, ...] | None = None
    res_blocks: int | None = setting(None, minimum=1)
    patch: int | None = setting(None, minimum=1, maximum=4)
    shortcuts: bool | None = None


@dataclass(frozen=True, kw_only=True)
class VaeLossConfig:
    """l1 * absolute error + l2 * squared error + kl * KL + perceptual * distance of features + adversarial * hinge.

    Every term is a mean, over pixels, latent numbers, features and patches. Squared error is what a short run
    learns fastest by: the absolute one is content with the background for long. `perceptual_weights` names a file of
    VGG-16 as safetensors (torchvision's names, and LPIPS' `lin` weights where it has them); without it the features are
    those of a fixed random network. `perceptual_frames` are drawn from each clip. The discriminator, of `disc_width`
    channels, trains with rate `disc_lr` and counts from step `adversarial_start` on.
    """

    l1: float = setting(1.0, minimum=0.0)
    l2: float = setting(0.0, minimum=0.0)
    kl: float = setting(1e-4, minimum=0.0)
    perceptual: float = setting(0.0, minimum=0.0)
    perceptual_frames: int | None = setting(None, minimum=1)
    perceptual_weights: str | None = None
    adversarial: float = setting(0.0, minimum=0.0)
    adversarial_start: int | None = setting(None, minimum=0)
    disc_width: int | None = setting(None, minimum=8)
    disc_lr: float | None = setting(None, above=0.0, maximum=1.0)


@dataclass(frozen=True, kw_only=True)
class VaeDataConfig:
    """What it is trained on: clips and images in one run.

    `src` is a folder that `megavideo ingest` wrote; without it moving shapes are rendered. A step has `clips` squares
    of `size` pixels and `frames` frames, and `images` single frames, over all processes. Pictures are first scaled to
    an area of at most `area`. `held_out` clips, each of another file where there are enough, and all other clips of
    their files are never trained on: the report measures them.
    """

    src: str | None = None
    area: int | None = setting(None, minimum=256)
    size: int = setting(minimum=16)
    frames: int = setting(minimum=1)
    clips: int = setting(minimum=0)
    images: int = setting(minimum=0)
    held_out: int = setting(minimum=1)


@dataclass(frozen=True, kw_only=True)
class VaeLoopConfig:
    """Length, precision and saving of a run. `steps` 0 trains nothing and reports on the weights at `model.path`."""

    steps: int = setting(minimum=0)
    seed: int = setting(0, minimum=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: int = setting(250, minimum=1)
    checkpoint_every: int = setting(500, minimum=1)
    keep_checkpoints: int = setting(2, minimum=1)
    log_every: int = setting(10, minimum=1)
    max_skipped: int = setting(20, minimum=1, remedy="the run ends after this many non-finite steps in a row")


@dataclass(frozen=True, kw_only=True)
class TrainVaeRun:
    """All settings of `megavideo train-vae`. `output` holds the run folders; the group `vae` names a preset."""

    name: str
    output: str
    model: VaeModelConfig
    loss: VaeLossConfig
    data: VaeDataConfig
    optim: OptimConfig
    train: VaeLoopConfig
