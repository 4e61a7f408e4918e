"""The moving average of weights in float32, which does not stand still where its steps are smaller than its digits.

Rounded to nearest, a step below half a unit in the last place is lost each time: at a decay of 0.9999 an average stays
where it is once it is within 3e-4 of the weight, relative to it. Rounded up or down with the probability that keeps the
mean (stochastic rounding; Croci et al. 2022), it follows. What is drawn is a function of the two values and the count
of steps, so that it is the same after a resume and needs neither a generator nor a further state.
"""

from __future__ import annotations

import torch

_SLOW = 5e-3  # a faster average loses less than 2e-5 of a weight
_ELEMENTS_AT_ONCE = 1 << 22  # of an optimizer's flat shard, so that what is worked with stays small


def update_average(average: torch.Tensor, weight: torch.Tensor, share: float, step: int) -> None:
    """Move `average` to `weight` by a `share` of the way between them, in place; `step` counts the updates."""
    exact = average.dtype == weight.dtype == torch.float32 and average.is_contiguous() and weight.is_contiguous()
    if share >= _SLOW or not exact:
        average.lerp_(weight, share)
        return
    pieces = (values.view(-1).split(_ELEMENTS_AT_ONCE) for values in (average, weight))
    for old, new in zip(*pieces, strict=True):
        _update(old, new, share, step)


def _update(average: torch.Tensor, weight: torch.Tensor, share: float, step: int) -> None:
    change = (weight - average).mul_(share)
    nearest = average + change
    lost = change.sub_(nearest - average)  # exact, as the change is the smaller one
    beyond = torch.nextafter(nearest, torch.copysign(torch.full_like(lost, torch.inf), lost))
    chance = lost.div_(beyond - nearest)
    drawn = _uniform(average, weight, step)
    torch.where(drawn < chance, beyond, nearest, out=average)


def _uniform(one: torch.Tensor, other: torch.Tensor, step: int) -> torch.Tensor:
    """Numbers in [0, 1) by a hash of the bits of two tensors and a count, float32; products of integers wrap."""
    mixed = one.view(torch.int32) * -1640531535
    mixed += other.view(torch.int32) * -2048144777
    mixed += step * 668265263 % (1 << 31)
    for shift, factor in ((15, 739982445), (12, 695872825)):
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> 15
    return (mixed & 0xFFFFFF).float().mul_(2.0**-24)
