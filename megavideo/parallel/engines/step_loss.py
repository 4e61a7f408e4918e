"""The loss of one step as its micro-batches come: errors of tokens, further terms, and the gate before the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from megavideo.parallel.processes.groups import Groups

# from prediction and target [n, P] and loss weights [n] to the errors [n]
TokenLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class FurtherTerms(Protocol):
    """Terms of the loss beside the errors of single tokens, with the weight of each by its name."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Name and weight of each term, in the order of the values."""
        ...

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor, labels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sums [len(weights)] over what this process counts, unweighted, of its own prediction and target [n, P].

        `labels` are the micro-batch's. A collective call of the processes that share the tokens of a pack out.
        """
        ...


class StepLoss:
    """What the micro-batches of one step come to on a process that forms the loss.

    Each one's loss is multiplied by `scale`. With a `limit` on the sum of all tokens' errors over the processes that
    form the loss, a step above it is spoiled: the last micro-batch's loss becomes NaN, so that the engine finds
    gradients that are not finite, on every rank alike, and updates nothing. Without a limit nothing is communicated.
    """

    def __init__(
        self,
        token_loss: TokenLoss,
        terms: FurtherTerms | None,
        groups: Groups,
        micro_steps: int,
        scale: float,
        limit: float | None,
    ) -> None:
        self._token_loss = token_loss
        self._terms = terms
        self._groups = groups
        self._micro_steps = micro_steps
        self._scale = scale
        self._limit = limit
        self.errors: list[torch.Tensor] = []
        self.terms: list[torch.Tensor] = []
        self.spike = False

    def add(
        self, prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, labels: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """The scalar whose backward pass trains on a micro-batch; a collective call of those that form the loss."""
        error = self._token_loss(prediction, target, weight)
        self.errors.append(error.detach())
        loss = error.sum()
        if self._terms is not None:
            values = self._terms(prediction, target, labels)
            self.terms.append(values.detach().double())
            loss = loss + (values * values.new_tensor(list(self._terms.weights.values()))).sum()
        if self._limit is not None and len(self.errors) == self._micro_steps:
            self.spike = self._limit < self._total_error() < math.inf
        return loss * (math.nan if self.spike else self._scale)

    def _total_error(self) -> float:
        """The errors of all micro-batches, over the processes of this stage of the model."""
        total = torch.stack([error.double().sum() for error in self.errors]).sum()
        for group in (self._groups.tp, self._groups.data):
            dist.all_reduce(total, group=group)
        return float(total)
