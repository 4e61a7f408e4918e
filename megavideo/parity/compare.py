"""A layout's account against the oracle's: every element of every parameter, from every process that holds it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megavideo.parity.record import Record

# A parameter whose gradient is smaller than this share of the largest one is compared with that share, since what is
# left of its own is rounding noise. In bf16 one process itself is 2e-2 away from fp32 for those below 5e-2.
FLOORS = {"fp32": 1e-4, "bf16": 5e-2}


class Incomparable(ValueError):
    """Accounts of a layout that do not hold the elements of one process; says which are missing, or too many."""


@dataclass(frozen=True)
class Difference:
    """How far a layout is from one process, relative, at most over all steps; infinitely where one is not finite.

    `loss_rel` is of the loss and of its further terms. `max_grad_rel` is the largest of ||g - g'|| / ||g'|| over
    parameters and steps; `max_param_rel` and `max_ema_rel` the same of weights and their average after the last step.
    `worst` names what has the largest of these three.
    """

    layout: str
    loss_rel: float
    grad_norm_rel: float
    max_grad_rel: float
    worst: str
    max_param_rel: float
    max_ema_rel: float

    def within(self, loss: float, gradient: float) -> bool:
        """Whether loss and norm are within `loss`, and gradients and weights within `gradient`."""
        return (
            max(self.loss_rel, self.grad_norm_rel) <= loss
            and max(self.max_grad_rel, self.max_param_rel, self.max_ema_rel) <= gradient
        )


def compare(layout: str, oracle: Record, records: Sequence[Record], precision: str) -> Difference:
    """Compare the processes of a layout with one process. Raises Incomparable where they hold other elements."""
    floor = FLOORS[precision]
    gradient, weight, average = (_worst(oracle, records, kind, floor) for kind in ("grad", "weight", "ema"))
    return Difference(
        layout=layout,
        loss_rel=max(
            max(_series(oracle.losses, record.losses), _series(oracle.terms, record.terms)) for record in records
        ),
        grad_norm_rel=max(_series(oracle.grad_norms, record.grad_norms) for record in records),
        max_grad_rel=gradient[0],
        worst=max(gradient, weight, average)[1],
        max_param_rel=weight[0],
        max_ema_rel=average[0],
    )


def _series(expected: Sequence[float], found: Sequence[float]) -> float:
    return max((_relative(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def _relative(expected: float, found: float) -> float:
    if not math.isfinite(expected) or not math.isfinite(found):
        return math.inf
    return abs(expected - found) / max(abs(expected), 1e-30)


def _worst(oracle: Record, records: Sequence[Record], kind: str, floor: float) -> tuple[float, str]:
    """Largest relative difference of a kind over steps and parameters, and what has it."""
    whole = {(p.step, p.name): p.values for p in oracle.pieces if p.kind == kind}
    largest: dict[int, float] = defaultdict(float)
    for (step, _), values in whole.items():
        largest[step] = max(largest[step], float(values.norm()))
    # every copy is compared: for each process the elements that it holds
    square: dict[tuple[int, str], torch.Tensor] = {key: torch.zeros_like(values) for key, values in whole.items()}
    seen = {key: torch.zeros_like(values, dtype=torch.bool) for key, values in whole.items()}
    for record in records:
        for piece in record.pieces:
            if piece.kind == kind:
                key = (piece.step, piece.name)
                if key not in whole:
                    raise Incomparable(f"one process has no {_what(kind, *key)}")
                at = piece.shard.whole_positions(piece.shape, piece.start, piece.values.numel())
                error = (piece.values - whole[key][at]).square()
                # of several copies the one that differs most counts; NaN counts as infinitely far
                square[key][at] = torch.maximum(square[key][at], torch.nan_to_num(error, nan=float("inf")))
                seen[key][at] = True
    missing = [_what(kind, *key) for key, mask in seen.items() if not bool(mask.all())]
    if missing:
        raise Incomparable(f"no process holds all of {', '.join(missing[:5])}")
    relative = {
        (step, name): float(total.sum().sqrt()) / max(float(whole[step, name].norm()), floor * largest[step], 1e-30)
        for (step, name), total in square.items()
    }
    key, value = max(relative.items(), key=lambda item: item[1])
    return value, _what(kind, *key)


def _what(kind: str, step: int, name: str) -> str:
    return f"gradient of {name} in step {step + 1}" if kind == "grad" else f"{kind} of {name}"
