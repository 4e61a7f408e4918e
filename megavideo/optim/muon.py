"""Muon for the matrices of the blocks, AdamW for all else, in one optimizer with one moving average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from megavideo.optim.adamw import EMA, AdamWWithEma
from megavideo.optim.matrix_exchange import MatrixExchange
from megavideo.optim.newton_schulz import matrix_update
from megavideo.parallel.engines.engine import Engine

MOMENTUM = "momentum"


class MuonWithEma(AdamWWithEma):
    """Muon with Nesterov momentum (Jordan et al. 2024) and decoupled weight decay (Liu et al. 2025).

    `matrices` tells how many matrices are stacked in each parameter that Muon trains. A group of parameters holds such
    ones or others, never both. A matrix has one state, `momentum`; other parameters have AdamW's two moments.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        matrices: Mapping[nn.Parameter, int],
        momentum: float,
        dtype: torch.dtype,
        **options: Any,
    ) -> None:
        super().__init__(groups, **options)
        self._stacked: dict[torch.Tensor, int] = dict(matrices.items())
        self._momentum = momentum
        self._dtype = dtype
        self._exchange: MatrixExchange | None = None
        self._flats = {id(parameter) for parameter in matrices}

    def attach(self, engine: Engine) -> None:
        """Find out which rank holds what of each matrix."""
        self._exchange = MatrixExchange(engine, self._stacked, self._dtype)
        self._flats = self._exchange.flats

    def _update(self) -> None:
        groups = self.param_groups
        of_matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in groups:
            (of_matrices if any(id(flat) in self._flats for flat in group["params"]) else others).append(group)
        self.param_groups = others
        try:
            super()._update()
        finally:
            self.param_groups = groups
        for group in of_matrices:
            self._update_matrices(group)

    def _update_matrices(self, group: dict[str, Any]) -> None:
        flats = [flat for flat in group["params"] if flat.grad is not None]
        updates = []
        for flat in flats:
            if not self.state[flat]:
                self._begin(flat)
            self.state[flat]["step"] += 1
            momentum = self.state[flat][MOMENTUM].lerp_(flat.grad, 1.0 - self._momentum)
            updates.append(flat.grad.lerp(momentum, self._momentum))
        if self._exchange is None:
            self._update_whole(flats, updates)
        else:
            self._exchange.update(flats, updates)
        for flat, update in zip(flats, updates, strict=True):
            flat.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _update_whole(self, parameters: list[torch.Tensor], updates: list[torch.Tensor]) -> None:
        """Without an engine every parameter is whole, and here."""
        for parameter, update in zip(parameters, updates, strict=True):
            for matrix in update.chunk(self._stacked[parameter]):
                matrix.copy_(matrix_update(matrix.to(self._dtype)))

    def _begin(self, parameter: torch.Tensor) -> None:
        if id(parameter) not in self._flats:
            super()._begin(parameter)
            return
        state = self.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state[MOMENTUM] = torch.zeros_like(parameter)
        if self._ema_decay is not None:
            state[EMA] = parameter.detach().clone()
