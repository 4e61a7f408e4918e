"""Codes and scales of matrices in 8 bits, beside rounding written out plainly, and what they lose."""

from __future__ import annotations

import pytest
import torch

from megavideo.interop import quantization
from megavideo.interop.quantization import SCHEMES, dequantise, is_matrix, loss_of, quantise

E4M3_LARGEST, INT8_LARGEST = 448.0, 127.0


def plain_e4m3(values: torch.Tensor) -> torch.Tensor:
    """The nearest of all numbers of e4m3, of two that are as near the one with an even code; as bytes."""
    codes = torch.arange(256, dtype=torch.int64)
    exponent, mantissa = (codes >> 3) & 15, (codes & 7).double()
    numbers = torch.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    numbers = torch.where(codes >= 128, -numbers, numbers)
    numbers[(codes & 127) == 127] = torch.inf  # not a number
    distance = (values.double()[..., None] - numbers).abs() + 1e-12 * (codes & 1)
    distance = distance + 1e-13 * ((codes >= 128) != values[..., None].signbit())  # of two zeros that of the sign
    return distance.argmin(-1).to(torch.uint8)


def matrix(seed: int = 0, rows: int = 24, columns: int = 40) -> torch.Tensor:
    """With rows of very different sizes and some large values."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    values[3] = values[3] ** 5
    return values * torch.logspace(-9, 6, rows)[:, None]


def test_fp8_codes_are_the_nearest() -> None:
    values = matrix()
    codes, scale = quantise(values, SCHEMES["fp8"])
    assert torch.equal(scale, values.abs().amax(1, keepdim=True) / E4M3_LARGEST)
    assert codes.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    assert torch.equal(codes.view(torch.uint8), plain_e4m3(values / scale))


def test_fp8_ties_go_to_even_and_subnormals_are_kept() -> None:
    """Halfway between neighbours: 1.0625 between 1 and 1.125, and 3 of 2^-10 between 1 and 2 of 2^-9."""
    row = torch.tensor([[448.0, 1.0625, 1.1875, -1.0625, 3 * 2.0**-10, 2.0**-10, 2.0**-9, 0.0]])
    codes, scale = quantise(row, SCHEMES["fp8"])
    expected = [448.0, 1.0, 1.25, -1.0, 2 * 2.0**-9, 0.0, 2.0**-9, 0.0]
    assert float(scale) == 1.0 and codes.float().flatten().tolist() == expected


def test_int8_codes_are_the_nearest() -> None:
    values = matrix()
    codes, scale = quantise(values, SCHEMES["int8"])
    assert torch.equal(scale, values.abs().amax(1, keepdim=True) / INT8_LARGEST)
    expected = [[round(value) for value in row] for row in (values / scale).tolist()]
    assert codes.dtype == torch.int8 and codes.tolist() == expected
    assert int(codes.min()) >= -127 and (codes.abs() == 127).any(1).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pieces_give_the_same(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = matrix()
    whole, scale = quantise(values, SCHEMES[scheme])
    loss = loss_of("a", values, whole, scale, SCHEMES[scheme])
    monkeypatch.setattr(quantization, "_BLOCK_VALUES", 90)
    pieces, scale_of_pieces = quantise(values, SCHEMES[scheme])
    assert torch.equal(whole.view(torch.uint8), pieces.view(torch.uint8)) and torch.equal(scale, scale_of_pieces)
    other = loss_of("a", values, pieces, scale_of_pieces, SCHEMES[scheme])
    assert other.relative_error == pytest.approx(loss.relative_error, rel=1e-12)
    assert (other.max_abs_error, other.zeroed_share) == (loss.max_abs_error, loss.zeroed_share)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_out_of_the_ordinary(scheme: str) -> None:
    """Of zeros, of one huge value, of the least and of the largest numbers there are."""
    values = torch.ones(4, 100)
    values[0] = 0.0
    values[1, 7] = -1e30
    values[2] = 1e-40
    values[3] = 3.4e38
    codes, scale = quantise(values, SCHEMES[scheme])
    back = dequantise(codes, scale)
    assert torch.isfinite(scale).all() and (scale > 0).all() and torch.isfinite(back).all()
    assert (back[0] == 0).all()
    assert back[1, 7] == pytest.approx(-1e30, rel=1e-6) and int((back[1] != 0).sum()) == 1
    assert (back[2] - values[2]).abs().max() <= scale[2] / 2
    assert back[3].tolist() == pytest.approx(values[3].tolist(), rel=1e-6)
    loss = loss_of("a", values[:2], codes[:2], scale[:2], SCHEMES[scheme])
    assert loss.zeroed_share == 99 / 200 and loss.saturated_share == 1 / 200 and loss.max_abs_error >= 1.0
    none = loss_of("a", values[:1], codes[:1], scale[:1], SCHEMES[scheme])
    assert (none.relative_error, none.max_abs_error, none.saturated_share, none.zeroed_share) == (0.0, 0.0, 0.0, 0.0)


def test_fp8_is_off_by_at_most_a_sixteenth() -> None:
    """Three bits of mantissa, so half a step is 2^-4 of the value; below 2^-6 of the scale, steps are 2^-9 of it."""
    values = matrix(1, 64, 512)
    codes, scale = quantise(values, SCHEMES["fp8"])
    bound = torch.maximum(values.abs() * 2.0**-4, scale * 2.0**-10)
    share = (dequantise(codes, scale) - values).abs() / bound
    assert 0.9 < float(share.max()) <= 1 + 1e-5


def test_int8_is_off_by_at_most_half_a_step() -> None:
    values = matrix(2, 64, 512)
    codes, scale = quantise(values, SCHEMES["int8"])
    step = values.abs().amax(1, keepdim=True) / INT8_LARGEST
    share = (dequantise(codes, scale) - values).abs() / (step / 2)
    assert 0.9 < float(share.max()) <= 1 + 1e-4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_loss_is_what_its_formula_says(scheme: str) -> None:
    values = matrix(3)
    codes, scale = quantise(values, SCHEMES[scheme])
    loss = loss_of("blocks.0.ffn.0.weight", values, codes, scale, SCHEMES[scheme])
    error = dequantise(codes, scale).double() - values.double()
    assert loss.relative_error == pytest.approx(float(error.norm() / values.double().norm()), rel=1e-5)
    assert loss.max_abs_error == pytest.approx(float(error.abs().max()), rel=1e-5)
    largest = sum(abs(code) == SCHEMES[scheme].largest for code in codes.float().flatten().tolist())
    assert loss.saturated_share == largest / values.numel() and largest >= len(values)


def test_matrices_of_blocks_alone_are_quantised() -> None:
    for name in (
        "blocks.0.self_attention.qkv.weight",
        "blocks.11.ffn.down.weight",
        "blocks.3.cross_attention.q.weight",
    ):
        assert is_matrix(name, (8, 8))
    for name, shape in (
        ("blocks.0.self_attention.q_norm.weight", (8,)), ("blocks.0.ffn.up.bias", (8,)),
        ("blocks.0.modulation_table", (6, 8)), ("embed.time.fc1.weight", (8, 8)), ("head.proj.weight", (8, 8)),
        ("embed.patch.weight", (8, 8)), ("head.modulation_table", (2, 8)),
    ):  # fmt: skip
        assert not is_matrix(name, shape)
