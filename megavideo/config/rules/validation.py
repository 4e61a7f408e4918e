"""Rules of validation during training: what each part needs, and which settings it leaves without effect when off."""

from __future__ import annotations

from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError

_OF_MEASURING = ("uri", "clips", "levels")
_OF_SAMPLES = ("prompts", "sample_steps", "guidance", "frames", "height", "width")


def measuring_is_on_where_it_is_set(cfg: TrainRun) -> None:
    """Which clips are measured, and how, matters only where they are."""
    if cfg.validation.every is None:
        _check_unset(cfg, _OF_MEASURING, "every")


def samples_are_on_where_they_are_set(cfg: TrainRun) -> None:
    """What is sampled, and how, matters only where samples are drawn."""
    if cfg.validation.samples_every is None:
        _check_unset(cfg, _OF_SAMPLES, "samples_every")


def samples_need_prompts(cfg: TrainRun) -> None:
    """Samples are drawn from prompts, none of which is empty."""
    prompts = list(cfg.validation.prompts)
    if cfg.validation.samples_every is not None and not (prompts and all(prompt.strip() for prompt in prompts)):
        rule = f"validation.samples_every={cfg.validation.samples_every} draws samples of prompts with words in them"
        remedy = "give some, as validation.prompts=['a red kite over a beach'], or validation.samples_every=null"
        raise ConfigError("validation.prompts", prompts, rule, remedy)


def samples_are_of_a_trained_task(cfg: TrainRun) -> None:
    """Samples are videos of prompts alone, which a model that is told of a first frame may never have been without."""
    validation, field = cfg.validation, "validation.samples_every"
    if not cfg.model.given_channels or cfg.diffusion.conditions.text > 0 or cfg.stage is not None or cfg.stages:
        return
    if validation.samples_every is not None and validation.frames > 1:
        rule = "draws videos of prompts alone, and with diffusion.conditions.text=0 all are trained with a first frame"
        remedy = f"add {field}=null, and draw some by `megavideo sample image=`; or train on text too"
        raise ConfigError(field, validation.samples_every, rule, remedy)


def _check_unset(cfg: TrainRun, names: tuple[str, ...], switch: str) -> None:
    rule = f"has no effect with validation.{switch}=null"
    refuse_set("validation", cfg.validation, names, rule, f"add validation.{switch}=500, or drop it")


VALIDATION_RULES = (
    measuring_is_on_where_it_is_set,
    samples_are_on_where_they_are_set,
    samples_need_prompts,
    samples_are_of_a_trained_task,
)
