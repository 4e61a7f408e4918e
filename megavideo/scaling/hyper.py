"""Laws of learning rate and batch: best values of rows that differ in nothing else, as powers of tokens and size.

Value = factor * T^p * N^q for T training tokens and N parameters, the form of Yin et al. 2024 (arXiv 2411.17470).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megavideo.scaling.points import Points

_LEAST_VALUES = 3  # of one setting, for a parabola
_LEAST_GROUPS = 3  # for a power of one variable; one more for two


@dataclass(frozen=True)
class Best:
    """The best value of a setting for `params` and `tokens`: the lowest point of a parabola over its logarithm."""

    params: float
    tokens: float
    value: float


@dataclass(frozen=True)
class SettingLaw:
    """value = `factor` * T^`token_power` * N^`size_power`; a power is None where all groups have one T, or one N.

    `spread` is the root mean square of the errors of the logarithm over the `groups`.
    """

    setting: str
    factor: float
    token_power: float | None
    size_power: float | None
    spread: float
    groups: tuple[Best, ...]

    def at(self, params: float, tokens: float) -> float:
        """The law's value."""
        return float(self.factor * tokens ** (self.token_power or 0.0) * params ** (self.size_power or 0.0))


def fit_setting(setting: str, points: Points, values: np.ndarray, others: np.ndarray | None) -> SettingLaw | None:
    """The law of a setting with `values` [P] over groups of rows alike in size, tokens and `others` [P].

    Where `others` vary for one size and number of tokens, the group with the lowest loss counts. None where too few
    groups have three values about a lowest point between them.
    """
    found = _best_by_size(points, values, np.zeros_like(values) if others is None else others)
    columns, names = [np.ones(len(found))], []
    for name in ("tokens", "params"):
        logarithms = np.log([getattr(best, name) for best in found])
        if len(np.unique(logarithms)) > 1:
            columns.append(logarithms)
            names.append(name)
    if len(found) < _LEAST_GROUPS + max(0, len(names) - 1) or not names:
        return None
    design, target = np.stack(columns, axis=1), np.log([best.value for best in found])
    solved, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    if rank < design.shape[1]:  # T and N grow together: their powers cannot be told apart
        return None
    powers = dict(zip(names, solved[1:], strict=True))
    spread = float(np.sqrt(np.mean((design @ solved - target) ** 2)))
    token_power, size_power = (float(powers[name]) if name in powers else None for name in ("tokens", "params"))
    return SettingLaw(setting, float(np.exp(solved[0])), token_power, size_power, spread, tuple(found))


def reduce_settings(points: Points) -> Points:
    """Of rows alike in size and tokens the one of lowest loss: the laws of loss are of well-set runs."""
    if points.learning_rate is None and points.batch_tokens is None:
        return points
    keep: dict[tuple[float, float], int] = {}
    for place in np.argsort(points.loss, kind="stable"):
        keep.setdefault((float(points.params[place]), float(points.tokens[place])), int(place))
    return points.take(np.array(sorted(keep.values())))


def _best_by_size(points: Points, values: np.ndarray, others: np.ndarray) -> list[Best]:
    groups: dict[tuple[float, float], dict[float, list[int]]] = {}
    for place in range(len(points)):
        alike = groups.setdefault((float(points.params[place]), float(points.tokens[place])), {})
        alike.setdefault(float(others[place]), []).append(place)
    found = []
    for (params, tokens), by_other in sorted(groups.items()):
        tried = [_lowest(values[places], points.loss[places]) for places in by_other.values()]
        lowest = min((each for each in tried if each is not None), key=lambda each: each[1], default=None)
        if lowest is not None:
            found.append(Best(params, tokens, lowest[0]))
    return found


def _lowest(values: np.ndarray, loss: np.ndarray) -> tuple[float, float] | None:
    """The value and loss of a parabola's lowest point, or None where that is not between the values."""
    if len(np.unique(values)) < _LEAST_VALUES:
        return None
    x = np.log(values)
    middle, half = (x.max() + x.min()) / 2, (x.max() - x.min()) / 2
    curvature, slope, level = np.polyfit((x - middle) / half, loss, 2)
    if curvature <= 0 or abs(offset := -slope / (2 * curvature)) > 1:
        return None
    return float(np.exp(middle + offset * half)), float(level - slope**2 / (4 * curvature))
