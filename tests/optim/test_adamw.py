"""AdamW with its average against torch's AdamW and an average kept by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from megavideo.config.schema.optim import OptimConfig
from megavideo.optim.adamw import EMA, AdamWWithEma
from megavideo.optim.build import build_optimizer
from megavideo.optim.groups import parameter_groups

OPTIONS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def give_gradients(module: nn.Module, step: int) -> None:
    for i, parameter in enumerate(module.parameters()):
        generator = torch.Generator().manual_seed(100 * step + i)
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.detach().clone() for p in parameters] + [
        value.clone() for p in parameters for value in optimizer.state[p].values()
    ]


@pytest.mark.parametrize("decay", [0.99, 0.5, None])
def test_equals_torchs_adamw_and_an_average_by_hand(decay: float | None) -> None:
    mine, theirs = model(), model()
    optimizer = AdamWWithEma(mine.parameters(), ema_decay=decay, **OPTIONS)
    reference = torch.optim.AdamW(theirs.parameters(), fused=True, **OPTIONS)
    average = [p.detach().clone() for p in theirs.parameters()]
    for step in range(1, 31):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
        for i, (one, two) in enumerate(zip(mine.parameters(), theirs.parameters(), strict=True)):
            assert torch.equal(one, two)
            if decay is not None:
                share = min(decay, (1 + step) / (10 + step))
                average[i] = share * average[i] + (1 - share) * two.detach()
                assert torch.allclose(optimizer.state[one][EMA], average[i], atol=1e-6)
            else:
                assert EMA not in optimizer.state[one]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_non_finite_gradient_changes_nothing(bad: float) -> None:
    module = model()
    optimizer = AdamWWithEma(module.parameters(), ema_decay=0.9, **OPTIONS)
    for step in range(3):
        give_gradients(module, step)
        optimizer.step()
    before = states(optimizer)
    give_gradients(module, 3)
    next(module.parameters()).grad[0, 0] = bad
    optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(before, states(optimizer), strict=True))


def test_state_made_at_once_is_the_state_made_by_the_first_step() -> None:
    one, two = model(), model()
    made = AdamWWithEma(one.parameters(), ema_decay=0.9, **OPTIONS)
    made.create_state([p for g in made.param_groups for p in g["params"]])
    assert all(float(made.state[p]["step"]) == 0 and torch.equal(made.state[p][EMA], p) for p in one.parameters())
    plain = AdamWWithEma(two.parameters(), ema_decay=0.9, **OPTIONS)
    for step in range(2):
        give_gradients(one, step)
        give_gradients(two, step)
        made.step()
        plain.step()
        made.create_state([p for g in made.param_groups for p in g["params"]])  # changes nothing where there is one
    assert all(torch.equal(a, b) for a, b in zip(states(made), states(plain), strict=True))


def test_the_average_is_a_state_that_is_saved_and_loaded() -> None:
    module = model()
    optimizer = AdamWWithEma(module.parameters(), ema_decay=0.9, **OPTIONS)
    give_gradients(module, 0)
    optimizer.step()
    other = copy.deepcopy(module)
    loaded = AdamWWithEma(other.parameters(), ema_decay=0.9, **OPTIONS)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module_, optimizer_ in ((module, optimizer), (other, loaded)):
        give_gradients(module_, 1)
        optimizer_.step()
    assert all(torch.equal(a, b) for a, b in zip(states(optimizer), states(loaded), strict=True))


class Named(nn.Module):
    """Parameters of the kinds that a DiT has."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation_table = nn.Parameter(torch.zeros(6, 4))
        self.qkv = nn.Linear(4, 12)
        self.q_norm = nn.RMSNorm(4)
        self.embed = nn.Linear(4, 4)


def test_matrices_decay_and_nothing_else() -> None:
    module = Named()
    decayed, plain = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    names = {id(p): name for name, p in module.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"qkv.weight", "embed.weight"}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_built_from_settings() -> None:
    optimizer = build_optimizer(Named(), OptimConfig(lr=1e-3, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert all(g["betas"] == (0.8, 0.9) and g["eps"] == 1e-7 and g["lr"] == 0.0 for g in optimizer.param_groups)
