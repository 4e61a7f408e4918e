"""Muon beside its formulas, written out by singular values and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.optim import OptimConfig
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.optim.adamw import EMA
from megavideo.optim.build import build_optimizer
from megavideo.optim.matrices import num_matrices
from megavideo.optim.muon import MOMENTUM, MuonWithEma
from megavideo.optim.newton_schulz import matrix_update, orthogonalise

MUON = OptimConfig(
    lr=1e-2, weight_decay=0.1, ema_decay=0.9, algorithm="muon", muon_momentum=0.95, muon_precision="fp32"
)
SHAPES = [(16, 16), (8, 40), (40, 8)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """Parameters of a model with one block, by their names in a DiT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.ModuleDict({"patch": nn.Linear(4, 8)})
        attention = nn.ModuleDict({"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8), "q_norm": nn.RMSNorm(8)})
        self.blocks = nn.ModuleDict({"0": nn.ModuleDict({"self_attention": attention})})
        for i, parameter in enumerate(self.parameters()):
            parameter.data = normal(*parameter.shape, seed=i)

    def give_gradients(self, step: int) -> None:
        for i, parameter in enumerate(self.parameters()):
            parameter.grad = normal(*parameter.shape, seed=100 * step + i)


def states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.detach().clone() for p in parameters] + [
        v.clone() for p in parameters for v in optimizer.state[p].values()
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_moves_each_singular_value_by_the_quintic_and_keeps_the_vectors(shape: tuple[int, int]) -> None:
    matrix = normal(*shape).double()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    moved = values / matrix.norm()
    for _ in range(5):
        moved = 3.4445 * moved - 4.7750 * moved**3 + 2.0315 * moved**5
    assert torch.allclose(orthogonalise(matrix), left @ torch.diag(moved) @ right, atol=1e-6)
    assert float((moved - 1.0).abs().max()) < 0.35


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_is_as_large_as_one_of_adamw(shape: tuple[int, int]) -> None:
    """Whatever the size of the gradient."""
    for size in (1e-6, 1.0, 1e6):
        assert float(matrix_update(normal(*shape) * size).square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


def test_bf16_is_near_fp32_and_not_the_same() -> None:
    exact, rounded = matrix_update(normal(32, 64)), matrix_update(normal(32, 64).bfloat16()).float()
    assert 1e-4 < float((exact - rounded).norm() / exact.norm()) < 5e-2


def test_two_steps_by_hand() -> None:
    """Nesterov momentum, decoupled decay, and the three matrices of queries, keys and values each by itself."""
    module = Block()
    optimizer = build_optimizer(module, MUON)
    weight = module.blocks["0"]["self_attention"]["qkv"].weight
    expected, momentum, average = weight.detach().clone(), torch.zeros_like(weight), weight.detach().clone()
    for step in (1, 2):
        module.give_gradients(step)
        for group in optimizer.param_groups:
            group["lr"] = MUON.lr
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * weight.grad
        nesterov = 0.05 * weight.grad + 0.95 * momentum
        update = torch.cat([matrix_update(part) for part in nesterov.chunk(3)])
        expected = expected * (1 - MUON.lr * 0.1) - MUON.lr * update
        average = average.lerp(expected, 1 - min(0.9, (1 + step) / (10 + step)))
    assert torch.allclose(weight, expected, atol=1e-6)
    assert torch.allclose(optimizer.state[weight][MOMENTUM], momentum, atol=1e-6)
    assert torch.allclose(optimizer.state[weight][EMA], average, atol=1e-6)
    assert optimizer.state[weight].keys() == {"step", MOMENTUM, EMA}


def test_all_else_is_trained_as_by_adamw() -> None:
    mine, theirs = Block(), Block()
    muon = build_optimizer(mine, MUON)
    adamw = build_optimizer(theirs, replace(MUON, algorithm="adamw", muon_momentum=None, muon_precision=None))
    for step in range(3):
        for module, optimizer in ((mine, muon), (theirs, adamw)):
            module.give_gradients(step)
            for group in optimizer.param_groups:
                group["lr"] = MUON.lr
            optimizer.step()
    found = {name: torch.equal(a, b) for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True)}
    matrices = {"blocks.0.self_attention.qkv.weight", "blocks.0.self_attention.out.weight"}
    assert {name for name, equal in found.items() if not equal} == matrices
    others = [p for name, p in mine.named_parameters() if name not in matrices]
    assert all(muon.state[p].keys() == {"step", "exp_avg", "exp_avg_sq", EMA} for p in others)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["blocks.0.self_attention.qkv.weight", "embed.patch.bias"])
def test_a_non_finite_gradient_changes_nothing(name: str, bad: float) -> None:
    module = Block()
    optimizer = build_optimizer(module, MUON)
    for step in range(2):
        module.give_gradients(step)
        optimizer.step()
    before = states(optimizer)
    module.give_gradients(2)
    module.get_parameter(name).grad.view(-1)[0] = bad  # type: ignore[union-attr]
    optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(before, states(optimizer), strict=True))


@pytest.mark.parametrize("modulation", ["adaln", "adaln_zero"])
def test_every_matrix_of_a_block_and_nothing_else(modulation: str) -> None:
    with torch.device("meta"):
        config = ModelConfig(
            layers=2, width=32, ffn=64, heads=4, latent_channels=4, text_dim=8, modulation=modulation,
            fps_conditioning=True, place_embedding=True,
        )  # fmt: skip
        model = DiT(config, LocalLayers())
    of_muon = {name for name, _ in model.named_parameters() if num_matrices(name)}
    assert of_muon == {
        name for name, p in model.named_parameters()
        if name.startswith("blocks.") and p.ndim == 2 and "table" not in name
    }  # fmt: skip
    for name in of_muon:  # each stacked matrix is square but for those of the feed-forward layer
        rows, columns = model.get_parameter(name).shape
        assert rows == columns * num_matrices(name) or "ffn" in name
    optimizer = build_optimizer(model, MUON)
    assert isinstance(optimizer, MuonWithEma)
    assert len(optimizer.param_groups[0]["params"]) == len(of_muon)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
