"""Cross-field rules of the optimizer and its schedule."""

from __future__ import annotations

from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def betas_are_decays(cfg: TrainRun) -> None:
    """Each beta is in [0, 1): at 1 a moment would never move."""
    if not all(0.0 <= beta < 1.0 for beta in cfg.optim.betas):
        remedy = "take optim.betas=[0.9,0.95]"
        raise ConfigError("optim.betas", list(cfg.optim.betas), "both must be >= 0 and < 1", remedy)


def average_moves(cfg: TrainRun) -> None:
    """A moving average with decay 1 would keep the first weights for ever."""
    if cfg.optim.ema_decay == 1.0:
        remedy = "take a decay below 1, as 0.9999, or optim.ema_decay=null for no average"
        raise ConfigError("optim.ema_decay", cfg.optim.ema_decay, "an average of decay 1 never moves", remedy)


def warmup_ends_within_run(cfg: TrainRun) -> None:
    """The learning rate is reached before the run ends."""
    if cfg.optim.warmup_steps >= cfg.train.steps:
        rule = f"must be < train.steps={cfg.train.steps}"
        remedy = f"take optim.warmup_steps={cfg.train.steps // 10}, or more steps"
        raise ConfigError("optim.warmup_steps", cfg.optim.warmup_steps, rule, remedy)


def min_lr_ratio_belongs_to_a_fall(cfg: TrainRun) -> None:
    """The floor of the schedule is needed where the rate falls and means nothing to a constant rate."""
    optim = cfg.optim
    if optim.schedule != "constant" and optim.min_lr_ratio is None:
        rule = f"optim.schedule={optim.schedule} needs it"
        raise ConfigError("optim.min_lr_ratio", None, rule, "take optim.min_lr_ratio=0.1")
    if optim.schedule == "constant" and optim.min_lr_ratio is not None:
        rule = "has no effect with optim.schedule=constant"
        raise ConfigError("optim.min_lr_ratio", optim.min_lr_ratio, rule, "add optim.min_lr_ratio=null")


def decay_belongs_to_wsd(cfg: TrainRun) -> None:
    """The length of the fall is needed by wsd, after the warm-up, and means nothing to other schedules."""
    optim, field = cfg.optim, "optim.decay_steps"
    if optim.schedule != "wsd":
        if optim.decay_steps is not None:
            rule = f"has no effect with optim.schedule={optim.schedule}"
            raise ConfigError(field, optim.decay_steps, rule, f"add {field}=null")
        return
    most = cfg.train.steps - optim.warmup_steps
    if optim.decay_steps is None:
        remedy = f"take {field}={max(1, most // 5)}, a fifth of the run"
        raise ConfigError(field, None, "optim.schedule=wsd needs it", remedy)
    if optim.decay_steps > most:
        rule = f"must be <= {most}, the steps after the warm-up"
        raise ConfigError(field, optim.decay_steps, rule, f"take {field}={max(1, most // 5)}, or more steps")


def muon_has_its_settings(cfg: TrainRun) -> None:
    """Muon's own settings are needed by it and mean nothing to AdamW."""
    optim = cfg.optim
    for name, value, example in (
        ("muon_momentum", optim.muon_momentum, "0.95"), ("muon_precision", optim.muon_precision, "bf16"),
    ):  # fmt: skip
        if optim.algorithm == "muon" and value is None:
            raise ConfigError(f"optim.{name}", None, "optim.algorithm=muon needs it", f"take optim.{name}={example}")
        if optim.algorithm == "adamw" and value is not None:
            remedy = f"take optim=muon, or add optim.{name}=null"
            raise ConfigError(f"optim.{name}", value, "has no effect with optim.algorithm=adamw", remedy)


OPTIM_RULES = (
    betas_are_decays,
    average_moves,
    warmup_ends_within_run,
    min_lr_ratio_belongs_to_a_fall,
    decay_belongs_to_wsd,
    muon_has_its_settings,
)
