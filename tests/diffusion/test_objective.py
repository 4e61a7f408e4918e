"""Both objectives: noise and its inverse, targets, weights and the terminal step."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.diffusion.objective import build_objective, ddpm_schedule

FLOW = DiffusionConfig()
EPSILON = DiffusionConfig(objective="ddpm", prediction="epsilon", timesteps="uniform", logit_mean=None, logit_std=None)
V = dataclasses.replace(EPSILON, prediction="v")
V_ZERO = dataclasses.replace(V, zero_terminal_snr=True)
MIN_SNR: dict[str, Any] = {"loss_weight": "min_snr", "snr_gamma": 5.0}
CLEAN = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(12, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("config", [FLOW, EPSILON, V, V_ZERO])
@pytest.mark.parametrize("level", [0.0, 0.003, 0.25, 0.5, 0.9])
def test_clean_inverts_noise(config: DiffusionConfig, level: float) -> None:
    objective = build_objective(config)
    noised = objective.noise(CLEAN, NOISE, level)
    clean = objective.clean(noised.noisy, noised.target, noised.timestep)
    assert torch.allclose(clean, CLEAN, atol=2e-5)


def test_flow_is_a_straight_line() -> None:
    noised = build_objective(FLOW).noise(CLEAN, NOISE, 0.3)
    assert torch.allclose(noised.noisy, 0.7 * CLEAN + 0.3 * NOISE, atol=1e-6)
    assert torch.equal(noised.target, NOISE - CLEAN)
    assert noised.timestep == pytest.approx(300.0)
    assert noised.weight == 1.0


@pytest.mark.parametrize("config", [EPSILON, V, V_ZERO])
@pytest.mark.parametrize("step", [0, 17, 500, 999])
def test_ddpm_is_that_of_diffusers(config: DiffusionConfig, step: int) -> None:
    noised = build_objective(config).noise(CLEAN, NOISE, (step + 0.5) / 1000)
    schedule, time = ddpm_schedule(config), torch.tensor([step])
    assert noised.timestep == float(step)
    assert torch.allclose(noised.noisy, schedule.add_noise(CLEAN, NOISE, time), atol=1e-5)
    expected = NOISE if config is EPSILON else schedule.get_velocity(CLEAN, NOISE, time)
    assert torch.allclose(noised.target, expected, atol=1e-5)


def test_zero_terminal_snr() -> None:
    last = build_objective(V_ZERO).noise(CLEAN, NOISE, 0.9999)
    assert last.timestep == 999.0
    assert torch.equal(last.noisy, NOISE)  # nothing of the clip is left
    assert torch.equal(last.target, -CLEAN)  # and v names it
    assert float(ddpm_schedule(V_ZERO).alphas_cumprod[-1]) == 0.0
    assert float(ddpm_schedule(V).alphas_cumprod[-1]) > 1e-3
    # the sampler made of it starts at the same step
    sampler = DDIMScheduler.from_config(ddpm_schedule(V_ZERO).config)
    sampler.set_timesteps(10)
    assert int(sampler.timesteps[0]) == 999 and float(sampler.alphas_cumprod[-1]) < 1e-6


def test_levels_reach_every_step_and_no_other() -> None:
    objective = build_objective(EPSILON)
    steps = {objective.noise(CLEAN, NOISE, (i + 0.5) / 1000).timestep for i in range(1000)}
    assert steps == {float(i) for i in range(1000)}
    assert objective.noise(CLEAN, NOISE, 1.0).timestep == 999.0


@pytest.mark.parametrize("step", [0, 100, 400, 700, 999])
@pytest.mark.parametrize("config", [EPSILON, V, V_ZERO])
def test_min_snr_weights(config: DiffusionConfig, step: int) -> None:
    weighted = dataclasses.replace(config, **MIN_SNR)
    alpha = float(ddpm_schedule(config).alphas_cumprod[step].double())
    snr = alpha / (1.0 - alpha)
    expected = min(snr, 5.0) / (snr if config is EPSILON else snr + 1.0)
    level = (step + 0.5) / 1000
    assert build_objective(weighted).noise(CLEAN, NOISE, level).weight == pytest.approx(expected, rel=1e-9)
    assert build_objective(config).noise(CLEAN, NOISE, level).weight == 1.0


def test_min_snr_weighs_the_clean_error_alike_for_epsilon_and_v() -> None:
    # an error d of x0 is one of d * sqrt(snr) in epsilon and d * sqrt(snr + 1) in v
    for step in (50, 300, 800):
        alpha = float(ddpm_schedule(V).alphas_cumprod[step].double())
        snr = alpha / (1.0 - alpha)
        weights = [
            build_objective(dataclasses.replace(config, **MIN_SNR)).noise(CLEAN, NOISE, (step + 0.5) / 1000).weight
            for config in (EPSILON, V)
        ]
        assert weights[0] * snr == pytest.approx(min(snr, 5.0))
        assert weights[1] * (snr + 1.0) == pytest.approx(min(snr, 5.0))


def test_shift_sigma_weights() -> None:
    objective = build_objective(dataclasses.replace(FLOW, loss_weight="shift_sigma", shift_loss_scale=2.5))
    for level in (0.0, 0.4, 1.0):
        assert objective.noise(CLEAN, NOISE, level).weight == pytest.approx(1.0 + 2.5 * level)
    assert math.isfinite(objective.noise(CLEAN, NOISE, 1.0).timestep)


@pytest.mark.parametrize("config", [FLOW, EPSILON, V, V_ZERO])
def test_the_clean_sample_moves_with_the_prediction_by_the_slope(config: DiffusionConfig) -> None:
    objective = build_objective(config)
    one, other = CLEAN.double(), NOISE.double()
    for timestep in (3.0, 250.0, 600.0, 990.0):
        moved = objective.clean(one, one, timestep) - objective.clean(one, other, timestep)
        assert torch.allclose(moved, objective.slope(timestep) * (one - other), rtol=1e-9)
