"""Settings of the objective (group `diffusion`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megavideo.config.schema.field import setting
from megavideo.config.schema.loss_terms import LossTermsConfig


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """Weights of the conditioning tasks; a sample draws one of them. Single images always draw `text`."""

    text: float = setting(1.0, minimum=0.0)
    image_to_video: float = setting(0.0, minimum=0.0)
    extension: float = setting(0.0, minimum=0.0)
    interpolation: float = setting(0.0, minimum=0.0)
    inpainting: float = setting(0.0, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What the model predicts, at which noise levels, and how the loss weighs them.

    `shift` moves flow timesteps towards noise by a constant; `shift_by_size` instead derives it from token count and
    latent frames. `shift_by_content` moves them further for clips whose measured spatial and temporal gradient is
    large, and back for calm ones: it is the exponent of that ratio (0: not at all). `sigma_range` trains one expert of
    a pair, on levels from one to the other as they are after all shifts; null trains on all. `snr_gamma` belongs to
    `loss_weight=min_snr`; `zero_terminal_snr` belongs to ddpm. `shift_loss_scale` is the slope of
    `loss_weight=shift_sigma`.
    """

    objective: Literal["flow", "ddpm"] = "flow"
    prediction: Literal["velocity", "epsilon", "v"] = "velocity"
    timesteps: Literal["uniform", "logit_normal"] = "logit_normal"
    logit_mean: float | None = 0.0
    logit_std: float | None = setting(1.0, above=0.0)
    shift: float | None = setting(None, above=0.0)
    shift_by_size: bool = False
    shift_by_content: float = setting(0.0, minimum=0.0, maximum=2.0)
    sigma_range: tuple[float, float] | None = setting(None, minimum=0.0, maximum=1.0)
    zero_terminal_snr: bool = False
    loss_weight: Literal["none", "min_snr", "shift_sigma"] = "none"
    snr_gamma: float | None = setting(None, above=0.0)
    shift_loss_scale: float | None = setting(None, above=0.0)
    text_dropout: float = setting(0.1, minimum=0.0, maximum=1.0)
    conditions: ConditionConfig = ConditionConfig()
    terms: LossTermsConfig = field(default_factory=LossTermsConfig)
