"""Cross-field rules of `megavideo train-vae`."""

from __future__ import annotations

from typing import Any

from megavideo.config.rules.optim import OPTIM_RULES
from megavideo.config.rules.train import name_is_a_folder_name, output_is_a_folder
from megavideo.config.schema.vae import TrainVaeRun
from megavideo.errors import ConfigError

TIME_RATIO = 4
_SHAPE_SIZE, _SHAPE_FRAMES = 64, 21
_SHAPE = ("latent_channels", "width", "width_factors", "halve_time", "res_blocks", "patch", "shortcuts")


def model_is_new_or_loaded(cfg: TrainVaeRun) -> None:
    """A new model needs all of its shape, and a loaded one brings its own."""
    for name in _SHAPE:
        value = getattr(cfg.model, name)
        if cfg.model.path is None and value is None:
            raise ConfigError(f"model.{name}", None, "a new autoencoder needs it", f"add model.{name}=VALUE")
        if cfg.model.path is not None and value is not None:
            rule = "has no effect with model.path, whose weights have their own shape"
            raise ConfigError(f"model.{name}", value, rule, "take vae=loaded, or drop model.path")


def scales_fit(cfg: TrainVaeRun) -> None:
    """There is one halving less than there are scales, and the time is halved twice."""
    model = cfg.model
    if model.width_factors is None or model.halve_time is None:
        return
    if len(model.halve_time) != len(model.width_factors) - 1:
        rule = f"needs one entry less than model.width_factors={list(model.width_factors)}"
        raise ConfigError("model.halve_time", list(model.halve_time), rule, "correct one of the two")
    if sum(model.halve_time) != 2:
        rule = "must halve the time twice: diffusers' AutoencoderKLWan works on four frames at a time"
        raise ConfigError("model.halve_time", list(model.halve_time), rule, "give two entries that are true")
    if model.shortcuts and model.width_factors[-1] != model.width_factors[-2]:
        rule = "the last two must be equal with model.shortcuts=true"
        raise ConfigError("model.width_factors", list(model.width_factors), rule, "repeat the last one")


def pictures_fit_the_scales(cfg: TrainVaeRun) -> None:
    """A new model's ratios divide the squares and the frames that it is trained on."""
    model, data = cfg.model, cfg.data
    if model.width_factors is None or model.patch is None:
        return
    ratio = model.patch * 2 ** (len(model.width_factors) - 1)
    if data.size % ratio:
        raise ConfigError("data.size", data.size, f"must divide by {ratio}, the space ratio", f"take {ratio * 8}")
    if (data.frames - 1) % TIME_RATIO:
        raise ConfigError("data.frames", data.frames, f"must be 1 + {TIME_RATIO}n", "take data.frames=17")


def source_and_area_belong_together(cfg: TrainVaeRun) -> None:
    """Clips are scaled to an area that holds a square; rendered shapes have their own size."""
    data = cfg.data
    if data.src is not None:
        if "://" in data.src:
            remedy = "copy the clips of the store to a folder, and ingest that"
            raise ConfigError("data.src", data.src, "must be a folder that ingest wrote, not an address", remedy)
        if data.area is None:
            raise ConfigError("data.area", None, "data.src needs it", f"add data.area={4 * data.size**2}")
        if data.area < data.size**2:
            rule = f"must hold a square of data.size={data.size}"
            raise ConfigError("data.area", data.area, rule, f"take data.area={2 * data.size**2}")
        return
    if data.area is not None:
        raise ConfigError("data.area", data.area, "has no effect without data.src", "drop it, or give data.src")
    for name, value, limit in (("size", data.size, _SHAPE_SIZE), ("frames", data.frames, _SHAPE_FRAMES)):
        if value > limit:
            rule = f"rendered shapes have at most {limit}"
            raise ConfigError(f"data.{name}", value, rule, f"take data.{name}={limit}")


def a_step_has_pictures(cfg: TrainVaeRun) -> None:
    """Something is trained on."""
    if cfg.data.clips + cfg.data.images == 0:
        raise ConfigError("data.clips", 0, "a step needs clips or images", "take data.clips=4")


def pictures_are_compared(cfg: TrainVaeRun) -> None:
    """Without an error of pixels colours are lost."""
    if cfg.loss.l1 + cfg.loss.l2 == 0.0:
        raise ConfigError("loss.l1", 0.0, "one of loss.l1 and loss.l2 must count", "take loss.l1=1.0")


def terms_have_their_settings(cfg: TrainVaeRun) -> None:
    """What belongs to a term of the loss is given with it, and not without it."""
    loss: Any = cfg.loss
    for term, names, optional in (
        ("perceptual", ("perceptual_frames",), ("perceptual_weights",)),
        ("adversarial", ("adversarial_start", "disc_width", "disc_lr"), ()),
    ):
        for name in (*names, *optional):
            value = getattr(loss, name)
            if getattr(loss, term) and value is None and name in names:
                raise ConfigError(f"loss.{name}", None, f"loss.{term} needs it", f"add loss.{name}=VALUE")
            # the perceptual distance of the report uses the weights, whatever the loss does
            if not getattr(loss, term) and value is not None and name not in optional:
                raise ConfigError(f"loss.{name}", value, f"has no effect with loss.{term}=0", f"add loss.{name}=null")


def adversary_comes_within_run(cfg: TrainVaeRun) -> None:
    """A discriminator that never counts is a mistake."""
    start = cfg.loss.adversarial_start
    if start is not None and 0 < cfg.train.steps <= start:
        rule = f"must be < train.steps={cfg.train.steps}"
        raise ConfigError("loss.adversarial_start", start, rule, "start earlier, or take loss.adversarial=0")


def nothing_is_trained_of_new_weights(cfg: TrainVaeRun) -> None:
    """A report without training needs weights."""
    if cfg.train.steps == 0 and cfg.model.path is None:
        raise ConfigError("train.steps", 0, "a new autoencoder has to be trained", "take train.steps=1000")


def optimizer_fits(cfg: TrainVaeRun) -> None:
    """The rules of the optimizer, where one is used."""
    if cfg.train.steps:
        for rule in OPTIM_RULES:
            rule(cfg)  # type: ignore[arg-type]  # it has the fields that these rules read


def muon_has_blocks(cfg: TrainVaeRun) -> None:
    """An autoencoder has none of the matrices that Muon trains."""
    if cfg.optim.algorithm == "muon":
        rule = "trains matrices of transformer blocks, and an autoencoder has none"
        raise ConfigError("optim.algorithm", "muon", rule, "take optim=small")


VAE_RULES = (
    name_is_a_folder_name,
    output_is_a_folder,
    model_is_new_or_loaded,
    scales_fit,
    pictures_fit_the_scales,
    source_and_area_belong_together,
    a_step_has_pictures,
    pictures_are_compared,
    terms_have_their_settings,
    adversary_comes_within_run,
    nothing_is_trained_of_new_weights,
    optimizer_fits,
    muon_has_blocks,
)
