"""diffusers' samplers, set to the noise schedule that a run was trained on."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.diffusion.objective import ddpm_schedule
from megavideo.errors import ConfigError

_FLOW = ("euler", "unipc", "dpm")
_DDPM = ("ddim", "unipc", "dpm")


def build_scheduler(name: str, diffusion: DiffusionConfig, shift: float | None) -> Any:
    """A scheduler with `set_timesteps`, `timesteps` and `step`.

    `shift` moves a flow sampler's levels towards noise; None moves none. Raises ConfigError for a
    sampler that does not fit the run's objective.
    """
    legal: tuple[str, ...] = _FLOW if diffusion.objective == "flow" else _DDPM
    if diffusion.zero_terminal_snr:
        legal = ("ddim",)  # the others divide by the signal, which is zero at the first step
    if name not in legal:
        raise ConfigError(
            "scheduler",
            name,
            f"does not fit a run with diffusion.objective={diffusion.objective}, "
            f"diffusion.zero_terminal_snr={diffusion.zero_terminal_snr}",
            f"take one of {', '.join(legal)}",
        )
    if diffusion.objective == "flow":
        return _flow(name, 1.0 if shift is None else shift)
    if shift is not None:
        raise ConfigError("shift", shift, "has no effect on a run with diffusion.objective=ddpm", "leave it out")
    kinds = {"ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler, "dpm": DPMSolverMultistepScheduler}
    schedule: Any = ddpm_schedule(diffusion)
    return kinds[name].from_config(schedule.config)


def _flow(name: str, shift: float) -> Any:
    if name == "euler":
        # A shift that its constructor is given moves the lowest level twice: there, and where the steps are set.
        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        scheduler.set_shift(shift)
        return scheduler
    kind = UniPCMultistepScheduler if name == "unipc" else DPMSolverMultistepScheduler
    return kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
