"""A folder for diffusers' Wan pipelines, but for its transformers: scheduler, pretrained parts, model_index.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers import UniPCMultistepScheduler

from megavideo.config.schema.export import ExportRun
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError
from megavideo.interop.export.output import write_json
from megavideo.interop.export.parts import Part, RunEncoders, plan_parts

_EXPANDED_PATCH = (1, 2, 2)  # a timestep for each token is taken so by diffusers, whatever the patch
_ABSENT = (None, None)
_NETWORK_ALONE = "take format=transformer, which holds the network alone"


@dataclass(frozen=True)
class Pipeline:
    """What is written beside the folders of its transformers."""

    index: dict[str, object]
    shift: float
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Of the parts that are copied."""
        return sum(part.num_bytes for part in self.parts)

    def write(self, folder: Path, on_bytes: Callable[[int], None]) -> None:
        """Write it into `folder`; `on_bytes` is told of what is copied. Raises OSError where the disk refuses."""
        flow_scheduler(self.shift).save_pretrained(folder / "scheduler")
        for part in self.parts:
            part.write(folder / part.name, on_bytes)
        write_json(folder / "model_index.json", self.index)


def plan_pipeline(cfg: ExportRun, run: TrainRun, encoders: RunEncoders) -> Pipeline:
    """The pipeline of a run, or of a pair whose high expert it is.

    Raises ConfigError, which names the setting, for what a Wan pipeline has no place for, and DataError where
    pretrained weights have gone.
    """
    shift = _shift(cfg, run)
    told, conditions = bool(run.model.given_channels), run.diffusion.conditions
    with_image = told or conditions.image_to_video > 0
    if with_image and not told and run.model.patch != _EXPANDED_PATCH:
        rule = f"a pipeline that is given an image takes tokens to be patches of {_EXPANDED_PATCH}"
        raise ConfigError("model.patch", run.model.patch, rule, _NETWORK_ALONE)
    if told:
        _check_mask(run.model, encoders.time_ratio)
    parts = plan_parts(cfg.parts, run, encoders)
    transformer = ("diffusers", "WanTransformer3DModel")
    index: dict[str, object] = {
        "_class_name": "WanImageToVideoPipeline" if with_image else "WanPipeline",
        "_diffusers_version": diffusers.__version__,
        "boundary_ratio": cfg.boundary,
        "expand_timesteps": with_image and not told,
        "transformer": transformer,
        "transformer_2": _ABSENT if cfg.low_ckpt is None else transformer,
        "scheduler": ("diffusers", "UniPCMultistepScheduler"),
        **dict.fromkeys(("vae", "text_encoder", "tokenizer"), _ABSENT),
        **({"image_encoder": _ABSENT, "image_processor": _ABSENT} if with_image else {}),
        **{part.name: (part.library, part.class_name) for part in parts},
    }
    return Pipeline(index, shift, parts, _notes(run, {part.name for part in parts}, encoders))


def flow_scheduler(shift: float) -> Any:  # diffusers sets its attributes in ways that types do not see
    """The scheduler of Wan's pipelines on a flow whose levels are moved towards noise by `shift`."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def _check_mask(model: ModelConfig, time_ratio: int) -> None:
    channels = model.given_channels - model.latent_channels
    if channels != time_ratio:
        rule = f"has {channels} for a mask, of which a pipeline tells {time_ratio}, one for each frame of a latent one"
        raise ConfigError("model.given_channels", model.given_channels, rule, _NETWORK_ALONE)


def _shift(cfg: ExportRun, run: TrainRun) -> float:
    if run.diffusion.objective != "flow":
        raise ConfigError(
            "diffusion.objective",
            run.diffusion.objective,
            "the scheduler of a Wan pipeline samples from a flow",
            _NETWORK_ALONE,
        )
    if cfg.shift is None and run.diffusion.shift_by_size:
        raise ConfigError(
            "diffusion.shift_by_size",
            True,
            "the run has a shift for each size of video, and the scheduler of a pipeline has one",
            "give shift= that of the size which is sampled most, or take format=transformer",
        )
    return cfg.shift or run.diffusion.shift or 1.0


def _notes(run: TrainRun, parts: set[str], encoders: RunEncoders) -> tuple[str, ...]:
    notes = []
    wanted = ["vae", "text_encoder", "tokenizer"]
    wanted += [] if run.model.image_dim is None else ["image_encoder", "image_processor"]
    missing = [name for name in wanted if name not in parts]
    if missing:
        notes.append(f"left out, so give from_pretrained {', '.join(f'{name}=None' for name in missing)}")
    if encoders.unpadded_tokens is not None:
        notes.append(
            "the run was trained on prompts without padding, and a Wan pipeline pads them with zeros and attends to "
            "these: give it prompt_embeds and negative_prompt_embeds of their own tokens alone, up to "
            f"{encoders.unpadded_tokens}, to have what `megavideo sample` gives"
        )
    conditions = run.diffusion.conditions
    told = bool(run.model.given_channels)
    if conditions.image_to_video > 0 and conditions.text > 0 and not told:
        notes.append("WanPipeline.from_pretrained loads it too, to generate from text alone")
    others = [name for name in ("extension", "interpolation", "inpainting") if getattr(conditions, name) > 0]
    if told and others:  # a last frame, which the pipeline takes as last_image
        others.remove("interpolation")
    if told and conditions.text > 0:
        others.append("text alone")
    if others:
        notes.append(f"no pipeline of diffusers does what the run was also trained for: {', '.join(others)}")
    return tuple(notes)
