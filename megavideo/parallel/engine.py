"""DeepSpeed's engine around the model: the one place that speaks to it.

The engine averages gradients over the data axis, clips by the global norm, and on a non-finite norm skips the update
on every rank alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from megavideo.config.layout import Layout

_NOISY_LOGGERS = ("DeepSpeed", "torch.utils.cpp_extension")


@dataclass(frozen=True)
class StepOutcome:
    """What an update did: gradient norm before clipping (infinite where not finite), and whether it was applied."""

    grad_norm: float
    applied: bool


class BaseOptimizer(Protocol):
    """A torch optimizer whose states can be made before its first update, to be filled from a checkpoint."""

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> MutableMapping[torch.Tensor, Any]:
        """The states of each parameter, by name."""
        ...

    def create_state(self) -> None:
        """Make the states of every parameter, at zero steps."""
        ...


class Engine:
    """A model under data parallelism with ZeRO 0 or 1.

    `micro_steps` packs are accumulated before each update. `optimizer` builds the optimizer once the parameters have
    the engine's precision.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[nn.Module], BaseOptimizer],
        layout: Layout,
        *,
        precision: str,
        micro_steps: int,
        clip: float | None,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.base_optimizer: BaseOptimizer = optimizer(model)
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": micro_steps,
            "gradient_clipping": clip or 0.0,
            "zero_optimization": {"stage": layout.zero},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": precision == "bf16"},
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 10**9,
        }
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=self.base_optimizer, config=settings)
        self.module: nn.Module = self._engine.module
        self.zero = layout.zero
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def forward(self, *inputs: Any) -> torch.Tensor:
        """The model's output, through the engine's hooks."""
        return self._engine(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one pack; at the last one of a step they are averaged over the data axis."""
        self._engine.backward(loss)

    def step(self, learning_rate: float, *, last: bool) -> StepOutcome | None:
        """Advance by one pack; at the `last` one of a step, update and say what came of it."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if not last:
            self._engine.step()
            return None
        if self.zero == 0:
            # gradients are averaged and alike on every rank by now; the engine itself looks at their norm only to clip
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            self._engine.step()
            return StepOutcome(norm if math.isfinite(norm) else math.inf, math.isfinite(norm))
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm() or 0.0)
        return StepOutcome(norm, not self._engine.optimizer.overflow)


def _import_deepspeed() -> Any:
    """DeepSpeed, imported late (it takes seconds and reads DS_ACCELERATOR), and kept from what a run does not need."""
    # it warns of missing CUDA compilers and of optimizers it has not tested; ours is covered by our own tests
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    import deepspeed
    from deepspeed.ops.op_builder.builder import OpBuilder

    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # its shared-memory all-reduce serves inference only, and would be compiled with C++ at the start of every CPU run
    shm = deepspeed.accelerator.get_accelerator().create_op_builder("ShareMemCommBuilder")
    if isinstance(shm, OpBuilder):
        deepspeed.ops.__compatible_ops__[shm.NAME] = False
    return deepspeed
