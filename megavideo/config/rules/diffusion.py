"""Cross-field rules of the objective: what each choice needs, and which settings it leaves without effect."""

from __future__ import annotations

from dataclasses import astuple

from megavideo.config.schema.loss_terms import LossTermsConfig
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def prediction_fits_objective(cfg: TrainRun) -> None:
    """Flow matching predicts the velocity; DDPM predicts epsilon or v."""
    diffusion = cfg.diffusion
    legal = ("velocity",) if diffusion.objective == "flow" else ("epsilon", "v")
    if diffusion.prediction not in legal:
        rule = f"objective {diffusion.objective} predicts {' or '.join(legal)}"
        raise ConfigError("diffusion.prediction", diffusion.prediction, rule, f"take diffusion.prediction={legal[-1]}")


def logit_settings_fit_timesteps(cfg: TrainRun) -> None:
    """Mean and deviation belong to logit-normal timesteps, which need both."""
    diffusion = cfg.diffusion
    for name in ("logit_mean", "logit_std"):
        value = getattr(diffusion, name)
        if diffusion.timesteps == "logit_normal" and value is None:
            raise ConfigError(
                f"diffusion.{name}", None, "diffusion.timesteps=logit_normal needs it", "give a number, as 0.0 and 1.0"
            )
        if diffusion.timesteps == "uniform" and value is not None:
            rule = "has no effect with diffusion.timesteps=uniform"
            raise ConfigError(
                f"diffusion.{name}", value, rule, "add diffusion.logit_mean=null diffusion.logit_std=null"
            )


def shift_belongs_to_flow(cfg: TrainRun) -> None:
    """DDPM's noise levels are its schedule's; only flow times are shifted."""
    diffusion = cfg.diffusion
    if diffusion.objective == "flow":
        return
    if diffusion.shift is not None:
        raise ConfigError(
            "diffusion.shift",
            diffusion.shift,
            "has no effect with diffusion.objective=ddpm",
            "add diffusion.shift=null",
        )
    if diffusion.shift_by_size:
        remedy = "add diffusion.shift_by_size=false"
        raise ConfigError("diffusion.shift_by_size", True, "has no effect with diffusion.objective=ddpm", remedy)
    if diffusion.shift_by_content:
        remedy = "add diffusion.shift_by_content=0"
        raise ConfigError(
            "diffusion.shift_by_content",
            diffusion.shift_by_content,
            "has no effect with diffusion.objective=ddpm",
            remedy,
        )


def one_kind_of_shift(cfg: TrainRun) -> None:
    """A constant shift and one derived from the size exclude each other."""
    if cfg.diffusion.shift is not None and cfg.diffusion.shift_by_size:
        remedy = "add diffusion.shift=null or diffusion.shift_by_size=false"
        raise ConfigError("diffusion.shift", cfg.diffusion.shift, "excludes diffusion.shift_by_size=true", remedy)


def sigma_range_fits(cfg: TrainRun) -> None:
    """A range of flow matching's levels, from less noise to more, and smaller than all; the terms act within it."""
    diffusion = cfg.diffusion
    if diffusion.sigma_range is None:
        return
    field, shown, (low, high) = "diffusion.sigma_range", list(diffusion.sigma_range), diffusion.sigma_range
    if diffusion.objective != "flow":
        raise ConfigError(field, shown, "has no effect with diffusion.objective=ddpm", f"add {field}=null")
    if low >= high:
        raise ConfigError(field, shown, "must run from less noise to more", f"write {field}=[{high:g},{low:g}]")
    if (low, high) == (0.0, 1.0):
        raise ConfigError(field, shown, "is all there is, and has no effect", f"add {field}=null")
    terms = diffusion.terms
    if terms.max_level <= low and any((terms.temporal_consistency, terms.motion_smoothness, terms.perceptual)):
        rule = f"no clip of diffusion.sigma_range={shown} is noised as little, and the terms have no effect"
        raise ConfigError("diffusion.terms.max_level", terms.max_level, rule, f"take a level above {low:g}")


def terminal_snr_fits(cfg: TrainRun) -> None:
    """Zero terminal SNR is a DDPM schedule; there epsilon says nothing of the clip (Lin et al. 2024, section 3.2)."""
    diffusion = cfg.diffusion
    if not diffusion.zero_terminal_snr:
        return
    if diffusion.objective == "flow":
        remedy = "add diffusion.zero_terminal_snr=false; flow matching ends in pure noise already"
        raise ConfigError("diffusion.zero_terminal_snr", True, "has no effect with diffusion.objective=flow", remedy)
    if diffusion.prediction == "epsilon":
        rule = "at an SNR of zero a prediction of epsilon does not determine the clip"
        raise ConfigError("diffusion.zero_terminal_snr", True, rule, "take diffusion.prediction=v")


def min_snr_fits(cfg: TrainRun) -> None:
    """Min-SNR weights are defined for DDPM and need their gamma, which belongs to them alone (Hang et al. 2023)."""
    diffusion = cfg.diffusion
    chosen = diffusion.loss_weight == "min_snr"
    if chosen and diffusion.objective != "ddpm":
        remedy = "take diffusion.loss_weight=none or shift_sigma"
        raise ConfigError("diffusion.loss_weight", "min_snr", "is defined for diffusion.objective=ddpm", remedy)
    if chosen and diffusion.snr_gamma is None:
        raise ConfigError(
            "diffusion.snr_gamma", None, "diffusion.loss_weight=min_snr needs it", "take diffusion.snr_gamma=5.0"
        )
    if not chosen and diffusion.snr_gamma is not None:
        rule = f"has no effect with diffusion.loss_weight={diffusion.loss_weight}"
        raise ConfigError("diffusion.snr_gamma", diffusion.snr_gamma, rule, "add diffusion.snr_gamma=null")


def shift_sigma_fits(cfg: TrainRun) -> None:
    """The weight 1 + scale * sigma is defined for flow matching and needs its scale, which belongs to it alone."""
    diffusion = cfg.diffusion
    chosen = diffusion.loss_weight == "shift_sigma"
    if chosen and diffusion.objective != "flow":
        remedy = "take diffusion.loss_weight=none or min_snr"
        raise ConfigError("diffusion.loss_weight", "shift_sigma", "is defined for diffusion.objective=flow", remedy)
    if chosen and diffusion.shift_loss_scale is None:
        remedy = "take diffusion.shift_loss_scale=1.0"
        raise ConfigError("diffusion.shift_loss_scale", None, "diffusion.loss_weight=shift_sigma needs it", remedy)
    if not chosen and diffusion.shift_loss_scale is not None:
        rule = f"has no effect with diffusion.loss_weight={diffusion.loss_weight}"
        raise ConfigError(
            "diffusion.shift_loss_scale", diffusion.shift_loss_scale, rule, "add diffusion.shift_loss_scale=null"
        )


def some_condition_is_drawn(cfg: TrainRun) -> None:
    """At least one conditioning task has a weight."""
    weights = astuple(cfg.diffusion.conditions)
    if sum(weights) == 0.0:
        rule = "the weights of all conditioning tasks are zero"
        raise ConfigError("diffusion.conditions", list(weights), rule, "take diffusion.conditions.text=1.0")


def settings_of_terms_fit(cfg: TrainRun) -> None:
    """How much is decoded belongs to the perceptual term; the level above which clips take no part, to any term."""
    terms, plain = cfg.diffusion.terms, LossTermsConfig()
    owners = ("temporal_consistency", "motion_smoothness", "perceptual")
    needs = {"perceptual_clips": owners[2:], "perceptual_frames": owners[2:], "max_level": owners}
    for name, needed in needs.items():
        value = getattr(terms, name)
        if value != getattr(plain, name) and not any(getattr(terms, owner) for owner in needed):
            raise ConfigError(
                f"diffusion.terms.{name}",
                value,
                f"has no effect without a weight of {' or '.join(needed)}",
                f"give diffusion.terms.{needed[0]} a weight, as 0.1, or leave it out",
            )


DIFFUSION_RULES = (
    prediction_fits_objective,
    logit_settings_fit_timesteps,
    shift_belongs_to_flow,
    one_kind_of_shift,
    sigma_range_fits,
    terminal_snr_fits,
    min_snr_fits,
    shift_sigma_fits,
    some_condition_is_drawn,
    settings_of_terms_fit,
)
