"""Scores of clips that models give, and which clips are kept by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class ClipFitConfig:
    """How well clip and caption fit: the mean cosine between frames and caption in the CLIP or SigLIP of `folder`."""

    folder: str | None = None
    minimum: float | None = setting(None, minimum=-1.0, maximum=1.0)
    maximum: float | None = setting(None, minimum=-1.0, maximum=1.0)


@dataclass(frozen=True, kw_only=True)
class TextAreaConfig:
    """Mean share of the picture, 0..1, that is text.

    `folder` holds a model of semantic segmentation or of object detection, whose class of text is called `label`; boxes
    count from `confidence` on.
    """

    folder: str | None = None
    label: str | None = None
    confidence: float = setting(0.5, minimum=0.0, maximum=1.0)
    minimum: float | None = setting(None, minimum=0.0, maximum=1.0)
    maximum: float | None = setting(None, minimum=0.0, maximum=1.0)


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Probability, 0..1, of `label` by the image classifier of `folder`."""

    folder: str | None = None
    label: str | None = None
    minimum: float | None = setting(None, minimum=0.0, maximum=1.0)
    maximum: float | None = setting(None, minimum=0.0, maximum=1.0)


@dataclass(frozen=True, kw_only=True)
class LearnedAestheticConfig:
    """Mean of what a head gives for the normalised image embedding of the CLIP or SigLIP of `folder`.

    `head` is a safetensors file of linear layers, `NUMBER.weight` and `NUMBER.bias`, applied in the order of the
    numbers with `activation` between them.
    """

    folder: str | None = None
    head: str | None = None
    activation: Literal["none", "relu", "gelu"] = "none"
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Near-duplicates by meaning: of clips whose image embeddings, by the CLIP or SigLIP of `folder`, have a cosine of
    `duplicate_cosine` or more, the best is kept.
    """

    folder: str | None = None
    duplicate_cosine: float | None = setting(None, minimum=-1.0, maximum=1.0)


@dataclass(frozen=True, kw_only=True)
class CodecMotionConfig:
    """Speed by the codec's motion vectors, in % of the picture's diagonal a second, where the codec exports any."""

    enabled: bool = False
    minimum: float | None = setting(None, minimum=0.0)
    maximum: float | None = setting(None, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class ScoresConfig:
    """Scores by models of one's own, each off until its `folder` is given: local, of transformers, in safetensors.

    They are measured of clips that pass `filters`, on `frames` frames spread over the clip whose longer side is at most
    `longest_side` pixels, `batch` frames at a time. A clip is kept where a score is from `minimum` to `maximum`; null
    leaves a threshold out. `device` is where models run: the GPU where there is one for `auto`. `watermark` is the mean
    over frames, `nsfw` the largest value of any.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    frames: int = setting(4, minimum=1, maximum=64)
    longest_side: int = setting(512, minimum=32)
    batch: int = setting(32, minimum=1)
    clip: ClipFitConfig = ClipFitConfig()
    text_area: TextAreaConfig = TextAreaConfig()
    watermark: LabelConfig = LabelConfig()
    nsfw: LabelConfig = LabelConfig()
    learned_aesthetic: LearnedAestheticConfig = LearnedAestheticConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    codec_motion: CodecMotionConfig = CodecMotionConfig()
