"""DeepSpeed's engine around any module under plain data parallelism: weights and states are whole on every rank.

It suits models of one piece whose loss is the caller's, as an autoencoder and its discriminator. Gradients are averaged
over ranks, clipped by their norm, and on a norm that is not finite nothing is updated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megavideo.parallel.engines.deepspeed import NO_TIMERS, initialize
from megavideo.parallel.engines.engine import BaseOptimizer


@dataclass(frozen=True)
class PlainOutcome:
    """What an update did: gradient norm before clipping (infinite where not finite), and whether it was applied."""

    grad_norm: float
    applied: bool


class PlainEngine:
    """A module under ZeRO 0. `optimizer` builds its optimizer; `clip` is the largest norm of the whole gradient.

    With `autocast` the forward pass computes in bfloat16 and the weights stay float32.
    """

    def __init__(
        self, module: nn.Module, optimizer: Callable[[nn.Module], BaseOptimizer], clip: float | None, autocast: bool
    ) -> None:
        self.base_optimizer = optimizer(module)
        self._clip = clip
        self._autocast = autocast
        self._outcome = PlainOutcome(0.0, True)
        self.base_optimizer.register_step_pre_hook(self._before_step)
        self._engine = initialize(model=module, optimizer=self.base_optimizer, config=_SETTINGS)
        self.module: nn.Module = self._engine.module
        self.device = next(self.module.parameters()).device

    def __call__(self, *inputs: Any) -> Any:
        """The module's output, by DeepSpeed's forward pass."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self._engine(*inputs)

    def update(self, loss: torch.Tensor, learning_rate: float) -> PlainOutcome:
        """Backward pass of a scalar, which is this rank's own mean, and the update; a collective call."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.backward(loss)
        self._engine.step()
        return self._outcome

    def create_state(self) -> None:
        """Make all states of the optimizer, at zero steps, so that a checkpoint can be read into them."""
        self.base_optimizer.create_state([p for group in self.base_optimizer.param_groups for p in group["params"]])

    def named_states(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight as `weight/NAME` and every state of the optimizer as `STATE/NAME`; writing into them counts."""
        for name, parameter in self.module.named_parameters():
            yield f"weight/{name}", parameter.detach()
            for state, values in self.base_optimizer.state.get(parameter, {}).items():
                yield f"{state}/{name}", values

    def _before_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        applied = math.isfinite(norm)
        self._outcome = PlainOutcome(norm if applied else math.inf, applied)
        if applied and self._clip is not None and norm > self._clip:
            torch._foreach_mul_(gradients, self._clip / (norm + 1e-6))


# One micro-batch a step; clipping is ours, since DeepSpeed's own does not tell the norm.
_SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 0},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": 10**9,
    "timers": NO_TIMERS,
}
