"""Settings of `megavideo export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting

ExportFormat = Literal["pipeline", "transformer", "wan", "single"]
ExportDtype = Literal["fp32", "bf16"]
Quantization = Literal["none", "fp8", "int8"]
Part = Literal["copy", "link", "none"]


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """How the pretrained parts of a pipeline get into its folder: `copy`, symbolic `link`, or `none` to leave one out.

    A pipeline without text encoder is given prompts that are encoded already, one without autoencoder gives latents.
    `image_encoder` is there, with its processor, for models with `model.image_dim`.
    """

    vae: Part = "copy"
    text_encoder: Part = "copy"
    tokenizer: Part = "copy"
    image_encoder: Part = "copy"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A small video that the run and its quantised export sample of `prompt`, from the same noise, to be compared.

    `steps` 0 samples none.
    """

    steps: int = setting(4, minimum=0)
    prompt: str = "a boat on a lake"
    frames: int = setting(9, minimum=1)
    height: int = setting(64, minimum=1)
    width: int = setting(96, minimum=1)


@dataclass(frozen=True, kw_only=True)
class ExportRun:
    """All settings of `megavideo export`.

    `ckpt` is a run folder, one checkpoint in it, or either in a store; `out` is made. `format` is a folder of diffusers
    with all that `WanPipeline.from_pretrained` takes (`pipeline`) or the transformer alone (`transformer`), a folder
    in the original Wan's names (`wan`), or one .safetensors file in those names (`single`). Files have up to `shard_gb`
    (of 1e9 bytes). In bf16 the tensors that diffusers computes with in fp32 stay so. `verify` loads what was written
    in diffusers and compares its output with this package's model, which takes memory for the whole model. `shift` is
    that of the pipeline's scheduler; None takes the run's own.

    `low_ckpt` is the low-noise expert of a pair, whose other is `ckpt`, for a pipeline that goes from one to the other
    at the noise level `boundary`, as Wan 2.2 A14B does.

    `quantization` writes the matrices of the blocks' linear layers in 8 bits, e4m3 or integers, with a scale for each
    output channel, and the rest in `dtype`. A page beside `out` shows what that loses; with `verify` the outputs and a
    video of both, too.
    """

    ckpt: str = setting(remedy="VALUE is a run folder that `megavideo train` wrote, as runs/small")
    out: str = setting(remedy="VALUE is a folder that is not there yet, or an .safetensors file with format=single")
    low_ckpt: str | None = None
    boundary: float | None = setting(None, above=0.0, maximum=0.999)
    format: ExportFormat = "pipeline"
    weights: Literal["ema", "raw"] = "ema"
    dtype: ExportDtype = "fp32"
    shard_gb: float = setting(5.0, above=0.0)
    verify: bool = True
    shift: float | None = setting(None, above=0.0)
    parts: PartsConfig = PartsConfig()
    quantization: Quantization = "none"
    compare: CompareConfig = CompareConfig()
