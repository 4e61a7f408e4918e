"""What is predicted from what: the two objectives behind one interface.

A level u in (0, 1) says how noisy a sample is; both objectives map it to the model's timestep in 0..1000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler

from megavideo.config.schema.diffusion import DiffusionConfig

NUM_TIMESTEPS = 1000


@dataclass(frozen=True)
class NoisedSample:
    """One sample under the objective: what the model sees, what it should say, its timestep and its loss weight."""

    noisy: torch.Tensor
    target: torch.Tensor
    timestep: float
    weight: float


class Objective(Protocol):
    """Noise a sample at a level; recover its clean form from a prediction."""

    def noise(self, clean: torch.Tensor, noise: torch.Tensor, level: float) -> NoisedSample:
        """clean and noise [N, P]."""
        ...

    def clean(self, noisy: torch.Tensor, prediction: torch.Tensor, timestep: float) -> torch.Tensor:
        """The clean sample that a prediction [N, P] implies."""
        ...

    def slope(self, timestep: float) -> float:
        """By how much that clean sample moves with the prediction: `clean` is affine in it, with one factor."""
        ...


class FlowMatching:
    """x = (1 - s) x0 + s e; the model predicts the velocity e - x0 (Lipman et al. 2023, Liu et al. 2023)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self._scale = config.shift_loss_scale if config.loss_weight == "shift_sigma" else None

    def noise(self, clean: torch.Tensor, noise: torch.Tensor, level: float) -> NoisedSample:
        """Straight line between data and noise; the timestep is 1000 * level."""
        weight = 1.0 if self._scale is None else 1.0 + self._scale * level
        return NoisedSample(torch.lerp(clean, noise, level), noise - clean, level * NUM_TIMESTEPS, weight)

    def clean(self, noisy: torch.Tensor, prediction: torch.Tensor, timestep: float) -> torch.Tensor:
        """x - s v."""
        return noisy - prediction * (timestep / NUM_TIMESTEPS)

    def slope(self, timestep: float) -> float:
        """-s."""
        return -timestep / NUM_TIMESTEPS


class Ddpm:
    """x = sqrt(a) x0 + sqrt(1 - a) e; the model predicts e (Ho et al. 2020) or v (Salimans and Ho 2022).

    `zero_terminal_snr` rescales the schedule so that its last step is pure noise (Lin et al. 2024). `min_snr` weighs
    by min(snr, gamma) / snr for epsilon and / (snr + 1) for v (Hang et al. 2023).
    """

    def __init__(self, config: DiffusionConfig) -> None:
        schedule: Any = ddpm_schedule(config)  # diffusers sets its attributes in ways that types do not see
        self._alphas: list[float] = schedule.alphas_cumprod.double().tolist()
        self._v = config.prediction == "v"
        self._gamma = config.snr_gamma if config.loss_weight == "min_snr" else None

    def noise(self, clean: torch.Tensor, noise: torch.Tensor, level: float) -> NoisedSample:
        """The timestep is the whole number of thousandths in `level`."""
        step = min(int(level * NUM_TIMESTEPS), NUM_TIMESTEPS - 1)
        signal, spread = self._alphas[step] ** 0.5, (1.0 - self._alphas[step]) ** 0.5
        target = signal * noise - spread * clean if self._v else noise
        return NoisedSample(signal * clean + spread * noise, target, float(step), self._weight(step))

    def clean(self, noisy: torch.Tensor, prediction: torch.Tensor, timestep: float) -> torch.Tensor:
        """sqrt(a) x - sqrt(1 - a) v, or (x - sqrt(1 - a) e) / sqrt(a)."""
        alpha = self._alphas[int(timestep)]
        signal, spread = alpha**0.5, (1.0 - alpha) ** 0.5
        return signal * noisy - spread * prediction if self._v else (noisy - spread * prediction) / signal

    def slope(self, timestep: float) -> float:
        """-sqrt(1 - a), or for epsilon -sqrt((1 - a) / a)."""
        alpha = self._alphas[int(timestep)]
        return -((1.0 - alpha) ** 0.5) if self._v else -(((1.0 - alpha) / alpha) ** 0.5)

    def _weight(self, step: int) -> float:
        if self._gamma is None:
            return 1.0
        alpha = self._alphas[step]
        snr = alpha / (1.0 - alpha)
        return min(snr, self._gamma) / (snr + 1.0 if self._v else snr)


def ddpm_schedule(config: DiffusionConfig) -> DDPMScheduler:
    """diffusers' scheduler with the training noise schedule; samplers are made from its configuration."""
    return DDPMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction" if config.prediction == "v" else "epsilon",
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing",
    )


def build_objective(config: DiffusionConfig) -> Objective:
    """The configured objective."""
    return FlowMatching(config) if config.objective == "flow" else Ddpm(config)
