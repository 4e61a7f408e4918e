"""An average that follows steps smaller than a digit of float32."""

from __future__ import annotations

import torch

from megavideo.optim import average as module
from megavideo.optim.adamw import EMA, AdamWWithEma
from megavideo.optim.average import update_average

SHARE = 1e-4


def test_it_follows_weights_that_are_almost_reached() -> None:
    """Rounded to nearest, none of these moves at all."""
    begin = torch.rand(600, generator=torch.Generator().manual_seed(0)).mul_(2.0).add_(0.01)
    weight = begin * (1.0 + 1e-4)
    average, exact = begin.clone(), begin.double()
    for step in range(1500):
        update_average(average, weight, SHARE, step)
        exact += (weight.double() - exact) * SHARE
    moved = (exact - begin.double()) / exact
    error = (average.double() - exact) / exact
    assert torch.equal(begin.clone().lerp_(weight, SHARE), begin)
    assert float(moved.mean()) > 1.3e-5
    assert abs(float(error.mean())) < 2e-7 and float(error.std()) < 1e-6


def test_large_steps_are_what_they_were() -> None:
    generator = torch.Generator().manual_seed(1)
    average, weight = torch.randn(2, 5000, generator=generator)
    expected = average.clone().lerp_(weight, 1e-3)
    update_average(average, weight, 1e-3, 7)
    assert torch.allclose(average, expected, rtol=2.5e-7, atol=0.0)
    fast = average.clone()
    update_average(fast, weight, 0.01, 7)
    assert torch.equal(fast, average.clone().lerp_(weight, 0.01))


def test_nothing_is_drawn_where_nothing_is_lost() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -3.5, 1e-38, 65504.0])
    average = values.clone()
    update_average(average, values.clone(), SHARE, 3)
    assert torch.equal(average, values)


def test_pieces_and_steps(monkeypatch: object) -> None:
    """The same whatever the pieces, again after a resume, and otherwise at another step."""
    generator = torch.Generator().manual_seed(2)
    begin = torch.randn(1000, generator=generator)
    weight = begin * (1.0 + 1e-4)
    results = []
    for pieces, step in ((1 << 22, 5), (64, 5), (64, 6)):
        monkeypatch.setattr(module, "_ELEMENTS_AT_ONCE", pieces)  # type: ignore[attr-defined]
        average = begin.clone()
        update_average(average, weight, SHARE, step)
        results.append(average)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_other_precisions_are_interpolated() -> None:
    average, weight = torch.ones(8, dtype=torch.bfloat16), torch.full((8,), 2.0, dtype=torch.bfloat16)
    update_average(average, weight, SHARE, 1)
    assert torch.equal(average, torch.ones(8, dtype=torch.bfloat16).lerp_(weight, SHARE))


def test_the_optimizer_averages_so() -> None:
    parameter = torch.nn.Parameter(torch.full((200,), 1.0) + torch.arange(200) * 1e-5)
    optimizer = AdamWWithEma([parameter], ema_decay=0.9999, lr=0.0, weight_decay=0.0)
    optimizer.create_state([parameter])
    state = optimizer.state[parameter]
    state["step"] += 100_000.0  # past the warm-up of the decay
    state[EMA] *= 1.0 - 1e-4
    before = state[EMA].clone()
    for _ in range(20):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert 0.5 < float((state[EMA] - before).mean()) / (20 * SHARE * 1e-4) < 1.5
