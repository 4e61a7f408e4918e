"""Settings of `megavideo sample`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.captions import ExpandConfig
from megavideo.config.schema.field import setting
from megavideo.config.schema.precision import AttentionName

Mode = Literal["image_to_video", "extension", "interpolation", "inpainting"]
_AS_GIVEN = ExpandConfig(kind="none")


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """All settings of `megavideo sample`.

    `ckpt` is a run folder or one checkpoint in it. `out` is an .mp4 file, or a folder where several prompts are given.
    Any `frames`, `height` and `width` are made: the next legal size is sampled and then cut. `fps` None takes the
    dataset's most common rate; another one is told to the model, and refused where it was trained without
    `model.fps_conditioning`. `shift` None takes the run's own. `guidance` 1 takes the prompt as it is, more follows it
    more closely, and 0 samples without any prompt. `precision` None is bf16 on a GPU and fp32 on a CPU, and `attention`
    the kernel, as `layers.attention` of training. `expand` rewrites the prompts before they are encoded.

    `image`, `last_image` and `video` are files whose frames the samples keep, of a run that was trained on the `mode`:
    the first frame (`image_to_video`), the beginning of a video (`extension`; its first `given_frames`, None for all),
    both ends (`interpolation`, of two images or of a video), or all but what is white in the picture or video `mask`
    (`inpainting`). `mode` None takes the one that the files make.

    `low_ckpt` is the other expert of a pair, for the steps whose noise level is below `boundary`.
    """

    ckpt: str = setting(remedy="VALUE is a run folder that `megavideo train` wrote, as runs/small")
    out: str = setting(remedy="VALUE is an .mp4 file, or a folder for several prompts")
    low_ckpt: str | None = None
    boundary: float | None = setting(None, above=0.0, maximum=0.999)
    weights: Literal["ema", "raw"] = "ema"
    scheduler: Literal["euler", "unipc", "dpm", "ddim"] = "euler"
    steps: int = setting(30, minimum=1)
    guidance: float = setting(5.0, minimum=0.0)
    shift: float | None = setting(None, above=0.0)
    seed: int = setting(0, minimum=0)
    frames: int = setting(17, minimum=1)
    height: int = setting(256, minimum=1)
    width: int = setting(256, minimum=1)
    fps: float | None = setting(None, minimum=0.01, maximum=1000.0)
    precision: Literal["fp32", "bf16"] | None = None
    attention: AttentionName = "auto"
    prompts_per_batch: int = setting(8, minimum=1)
    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    mask: str | None = None
    mode: Mode | None = None
    given_frames: int | None = setting(None, minimum=1)
    expand: ExpandConfig = _AS_GIVEN
