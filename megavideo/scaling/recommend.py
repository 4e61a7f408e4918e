"""The model that a budget is best spent on: shapes of one rule, each with the tokens that the budget pays for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import yaml

from megavideo.config.rules.model import rotary_split
from megavideo.config.schema.fit import ShapeConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.errors import ConfigError
from megavideo.planning.parameters import num_parameters
from megavideo.scaling.law import Law
from megavideo.scaling.shapes import flops_per_token, shapes

_SHOWN_BESIDE = 3


@dataclass(frozen=True)
class Candidate:
    """A shape, its parameters, the tokens of the budget, and the loss that the law predicts of both."""

    layers: int
    width: int
    ffn: int
    heads: int
    params: int
    tokens: float
    loss: float


@dataclass(frozen=True)
class Recommendation:
    """The best shape for a budget, the next smaller and larger ones around it (the best among them), by size.

    `at_edge` says that no larger or no smaller shape was to be had, so that the best may lie beyond.
    """

    budget: float
    clip_tokens: int
    text_tokens: int
    best: Candidate
    around: tuple[Candidate, ...]
    at_edge: bool


def check_shape(rule: ShapeConfig) -> None:
    """Raises ConfigError where the rule's heads could not be trained."""
    if any(share < 2 or share % 2 for share in rotary_split(rule.head_dim)):
        text = "3D rotary position needs an even width of a head, of at least 6"
        raise ConfigError("shape.head_dim", rule.head_dim, text, "take shape.head_dim=64 or 128")


def recommend(
    law: Law, budget: float, model: ModelConfig, rule: ShapeConfig, clip_tokens: int, text_tokens: int
) -> Recommendation:
    """The shape of lowest predicted loss whose training on clips of so many tokens costs `budget` FLOPs.

    FLOPs are counted by the one formula for each shape, not by a law of sizes.
    """
    tried = []
    for shape in shapes(model, rule):
        params, tokens = num_parameters(shape), budget / flops_per_token(shape, clip_tokens, text_tokens)
        loss = float(law.loss(params, tokens))
        tried.append(Candidate(shape.layers, shape.width, shape.ffn, shape.heads, params, tokens, loss))
    place = min(range(len(tried)), key=lambda number: tried[number].loss)
    around = tuple(tried[max(0, place - _SHOWN_BESIDE) : place + _SHOWN_BESIDE + 1])
    return Recommendation(budget, clip_tokens, text_tokens, tried[place], around, place in (0, len(tried) - 1))


def model_yaml(model: ModelConfig, found: Recommendation) -> str:
    """The text of a file for configs/model that holds the best shape, all else as in `model`."""
    best = found.best
    shape = dataclasses.replace(model, layers=best.layers, width=best.width, ffn=best.ffn, heads=best.heads)
    values = dataclasses.asdict(shape)
    values["patch"] = list(shape.patch)
    head = (
        f"# By megavideo fit, for {found.budget:.4g} FLOPs in clips of {found.clip_tokens:,} tokens and "
        f"{found.text_tokens:,} of text:\n"
        f"# {best.params:,} parameters, {best.tokens:.4g} video tokens, predicted loss {best.loss:.4f}.\n"
    )
    text: str = yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
    return head + text
