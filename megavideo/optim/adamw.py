"""AdamW that keeps a moving average of the weights as a third state, so that ZeRO shards and saves it with the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from megavideo.optim.average import update_average
from megavideo.parallel.engines.engine import Engine

EMA = "ema"


class AdamWWithEma(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) with `ema = lerp(ema, weight, 1 - decay)` after each step (`update_average`).

    `ema_decay` None keeps no average. The decay is warmed up as min(decay, (1 + n) / (10 + n)) at update n, so that
    a short run's average is not its start. Non-finite gradients leave every state as it was.
    """

    def __init__(self, params: Iterable[Any], *, ema_decay: float | None, **options: Any) -> None:
        super().__init__(params, fused=True, **options)
        self._ema_decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update weights, then their average; nothing where a gradient is not finite."""
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        if not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            return None
        # the average starts at the weights before the first update
        if self._ema_decay is not None:
            for parameter in self._parameters():
                if parameter.grad is not None and EMA not in self.state[parameter]:
                    self._begin(parameter)
        self._update()
        if self._ema_decay is not None:
            for parameter in self._parameters():
                state = self.state.get(parameter)
                if parameter.grad is not None and state:
                    updates = float(state["step"])
                    decay = min(self._ema_decay, (1.0 + updates) / (10.0 + updates))
                    update_average(state[EMA], parameter, 1.0 - decay, int(updates))
        return None

    def attach(self, engine: Engine) -> None:
        """Nothing: AdamW updates element by element, however they are laid out."""

    def create_state(self, parameters: Sequence[torch.Tensor]) -> None:
        """Make the states of parameters at once, at zero steps, so that a checkpoint can be read into them."""
        for parameter in parameters:
            if not self.state[parameter]:
                self._begin(parameter)

    def _update(self) -> None:
        super().step()

    def _begin(self, parameter: torch.Tensor) -> None:
        state = self.state[parameter]
        # the fused kernel wants its step count on the parameter's device
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        if self._ema_decay is not None:
            state[EMA] = parameter.detach().clone()

    def _parameters(self) -> Iterable[torch.Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])
