"""What `megavideo fit` reports; every field is ready for JSON."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.fit import FitMethod
from megavideo.scaling.diagnostics import Caution, Conditioning
from megavideo.scaling.fitting import Interval
from megavideo.scaling.hyper import SettingLaw
from megavideo.scaling.isoflop import Bias, Parabola, PowerLaw
from megavideo.scaling.law import Law, Optimum, TokenCost
from megavideo.scaling.recommend import Recommendation


@dataclass(frozen=True)
class FittedLaw:
    """A law by one method.

    `objective` is what was minimised, `error` the root mean square of the errors of the logarithm of the loss. Best
    sizes grow as compute^`size_exponent`, best tokens as compute^`token_exponent`. `intervals` are of E, A, B, alpha,
    beta, the two exponents, and `params`, `tokens` and `loss` of the `optimum` of the budget; empty without resamples.
    """

    method: FitMethod
    law: Law
    objective: float
    error: float
    size_exponent: float
    token_exponent: float
    optimum: Optimum
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class ParabolaFit:
    """Parabolas by budget, the power laws of their lowest points (None where there are too few), and their bias.

    `intervals` are of the powers `size_exponent` and `token_exponent`.
    """

    parabolas: tuple[Parabola, ...]
    size_law: PowerLaw | None
    token_law: PowerLaw | None
    bias: Bias | None
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class FitReport:
    """All that was fitted.

    `asked` is the method whose law answers for the `budget`, and `counted` says where FLOPs are from.
    """

    points: str
    counted: str
    num_points: int
    flops_least: float
    flops_most: float
    confidence: float
    cost: TokenCost
    conditioning: Conditioning
    asked: FitMethod
    laws: tuple[FittedLaw, ...]
    isoflop: ParabolaFit
    learning_rate: SettingLaw | None
    batch_tokens: SettingLaw | None
    budget: float
    recommendation: Recommendation | None
    cautions: tuple[Caution, ...]
    page: str
    exported: str | None

    @property
    def chosen(self) -> FittedLaw:
        """The law of the method that was asked for."""
        return next(law for law in self.laws if law.method == self.asked)
