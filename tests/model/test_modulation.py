"""adaLN on packs against finite differences and plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megavideo.model.modulation import gated_add, norm_modulate, sinusoid
from megavideo.model.rows import Rows

NUM_ROWS, WIDTH, EPS = 4, 6, 1e-6
# row 1 is never used; row 0 comes back after row 3, as given tokens do between noised ones
RUN_LENGTHS = ((0, 17), (3, 20), (0, 18), (2, 16))


def some_rows(dtype: torch.dtype = torch.float64) -> Rows:
    """A map of tokens to rows."""
    return Rows.of(torch.cat([torch.full((length,), row) for row, length in RUN_LENGTHS]), NUM_ROWS, dtype)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random numbers that ask for a gradient."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def inputs(rows: Rows) -> tuple[torch.Tensor, ...]:
    """Two tensors of tokens and two tables."""
    num_tokens = rows.row.shape[0]
    tokens = [normal(num_tokens, WIDTH, seed=seed) for seed in (0, 1)]
    return *tokens, *(normal(NUM_ROWS, WIDTH, seed=seed) for seed in (2, 3))


def test_gradients_of_norm_modulate() -> None:
    rows = some_rows()
    x, _, shift, scale = inputs(rows)
    assert torch.autograd.gradcheck(lambda *args: norm_modulate(*args, rows, EPS), (x, shift, scale))


def test_gradients_of_gated_add() -> None:
    rows = some_rows()
    x, branch, gate, _ = inputs(rows)
    assert torch.autograd.gradcheck(lambda *args: gated_add(*args, rows), (x, branch, gate))


def plain_norm_modulate(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, rows: Rows, eps: float
) -> torch.Tensor:
    """The same, gathered to the size of the tokens."""
    return F.layer_norm(x, (x.shape[-1],), eps=eps) * (1 + scale[rows.row]) + shift[rows.row]


def plain_gated_add(x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The same, gathered to the size of the tokens."""
    return x + branch * gate[rows.row]


def test_outputs_and_gradients_are_those_of_plain_torch() -> None:
    rows = some_rows()
    x, branch, shift, scale = inputs(rows)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    for ours, plain, given in (
        (norm_modulate(x, shift, scale, rows, EPS), plain_norm_modulate(x, shift, scale, rows, EPS), (x, shift, scale)),
        (gated_add(x, branch, shift, rows), plain_gated_add(x, branch, shift, rows), (x, branch, shift)),
    ):
        torch.testing.assert_close(ours, plain)
        actual = torch.autograd.grad((ours * weight).sum(), given)
        expected = torch.autograd.grad((plain * weight).sum(), given)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near_float64(dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    results = []
    for used in (dtype, torch.float64):
        rows = some_rows(used)
        x, branch, shift, scale = (t.detach().to(dtype).to(used).requires_grad_() for t in inputs(rows))
        out = gated_add(x, norm_modulate(branch, shift, scale, rows, EPS), scale, rows)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (x, branch, shift, scale))))
    for low, exact in zip(*results, strict=True):
        torch.testing.assert_close(low.double(), exact, rtol=tolerance, atol=4 * tolerance)


def test_unused_rows_have_no_gradient() -> None:
    rows = some_rows()
    x, branch, gate, _ = inputs(rows)
    (grad,) = torch.autograd.grad(gated_add(x, branch, gate, rows).sum(), gate)
    assert not grad[1].any()
    assert grad[0].all()


def test_sinusoid_has_cosines_first() -> None:
    features = sinusoid(torch.tensor([0.0, 2.0]), 6)
    angle = 2.0 * 10_000.0 ** (-torch.arange(3) / 3)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
    torch.testing.assert_close(features[1], torch.cat([angle.cos(), angle.sin()]))
