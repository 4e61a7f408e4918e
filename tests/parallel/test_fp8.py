"""FP8 products against float64 and bf16, on the CPU, and what a model's loss and gradients lose by them.

The bounds are a little above what was measured: 3.6-3.7 % of the output (E4M3 by E4M3), 5.8-5.9 % of the gradients
(E5M2 by E4M3), where bf16 loses 0.3 %.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.precision import ALWAYS_BF16
from megavideo.errors import ConfigError, NumericsError
from megavideo.model.dit import DiT
from megavideo.model.init import init_weights
from megavideo.model.layers import LocalLayers
from megavideo.parallel.fp8_probe import fp8_probe
from megavideo.parallel.layers.fp8 import (
    BACKWARD,
    FORWARD,
    Fp8Linear,
    emulated_fp8,
    is_excluded,
    quantize,
    scaled_product,
)
from megavideo.types import Grid, PackedBatch
from tests.model.packs import make_pack

CONFIG = ModelConfig(layers=2, width=64, ffn=256, heads=4, latent_channels=4, text_dim=32, time_dim=32)
GRIDS = (Grid(3, 4, 4), Grid(1, 5, 6), Grid(2, 3, 4))


def difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def run_linear(linear: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of input, weight and bias of sum(linear(x) * weight)."""
    x = x.clone().requires_grad_()
    out = linear(x)
    (out * weight).sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, *(p.grad for p in linear.parameters() if p.grad is not None)]


# 100 and 333 tokens do not divide by 16 and are padded
@pytest.mark.parametrize(("tokens", "inner", "outer"), [(100, 64, 96), (333, 256, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_linear_is_near_float64(tokens: int, inner: int, outer: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, x, weight = nn.Linear(inner, outer), torch.randn(tokens, inner), torch.randn(tokens, outer)
    exact = nn.Linear(inner, outer).double()
    exact.load_state_dict(linear.state_dict())
    truth = run_linear(exact, x.double(), weight.double())
    found = run_linear(Fp8Linear(linear.to(dtype)), x.to(dtype), weight.to(dtype))
    assert all(value.dtype == dtype for value in found)
    out, to_input, to_weight, to_bias = (difference(a, b) for a, b in zip(found, truth, strict=True))
    assert 0.02 < out < 0.045  # far above bf16's 0.003: it is FP8 that ran
    assert 0.03 < to_input < 0.07
    assert 0.03 < to_weight < 0.07
    assert to_bias < 0.005  # the bias takes no part in the product


def test_product_is_exact_but_for_the_rounding_of_its_operands() -> None:
    torch.manual_seed(1)
    left, right = quantize(torch.randn(32, 64), BACKWARD), quantize(torch.randn(48, 64), FORWARD)
    exact = (left[0].double() * left[1].double()) @ (right[0].double() * right[1].double()).t()
    assert difference(scaled_product(left, right, torch.float32), exact) < 1e-6


@pytest.mark.parametrize("dtype", [FORWARD, BACKWARD])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e20])
def test_scale_fills_the_format(dtype: torch.dtype, size: float) -> None:
    values = torch.linspace(-1.0, 1.0, 256) * size
    quantized, factor = quantize(values, dtype)
    assert quantized.float().abs().max() == torch.finfo(dtype).max
    # half a step of the last place of numbers whose first is at 448 or 57344
    step = 2.0**-3 if dtype == BACKWARD else 2.0**-4
    large = values.abs() > size / 100
    error = (quantized.float() * factor - values).abs()[large] / values.abs()[large]
    assert error.max() <= step * 1.001


def test_zeros_stay_zero_and_overflow_is_seen() -> None:
    zeros, factor = quantize(torch.zeros(4, 4), FORWARD)
    assert zeros.float().abs().max() == 0
    assert factor == 1
    for bad in (float("inf"), float("nan")):
        for dtype in (FORWARD, BACKWARD):
            values, factor = quantize(torch.tensor([1.0, bad]), dtype)
            assert not torch.isfinite(values.float() * factor).all()
        out = Fp8Linear(nn.Linear(16, 16))(torch.full((16, 16), bad))
        assert not torch.isfinite(out).all()


def test_layer_of_odd_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"blocks\.3\.ffn\.up is 24 -> 32.*divide by 16"):
        Fp8Linear(nn.Linear(24, 32), "blocks.3.ffn.up")


class Mlp(nn.Module):
    """Two layers, as the feed-forward part of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def train_mlp(*, fp8: bool, steps: int) -> list[float]:
    """Losses of learning a fixed map, with fp32 weights and bf16 layers as mixed precision has them."""
    torch.manual_seed(3)
    model, optimizer_of = Mlp(), torch.optim.AdamW
    x, teacher = torch.randn(512, 64).bfloat16(), torch.randn(64, 64) / 8
    target = torch.tanh(x.float() @ teacher)
    master = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    optimizer = optimizer_of(master.values(), lr=3e-3)
    model = model.bfloat16()
    losses = []
    with emulated_fp8(model, () if fp8 else ("up", "down")) as names:
        assert len(names) == (2 if fp8 else 0)
        for _ in range(steps):
            model.zero_grad()
            loss = (model(x).float() - target).square().mean()
            loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                master[name].grad = parameter.grad.float()
            optimizer.step()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(master[name])
            losses.append(loss.item())
    return losses


def test_mlp_learns_in_fp8_as_in_bf16() -> None:
    bf16, fp8 = train_mlp(fp8=False, steps=40), train_mlp(fp8=True, steps=40)
    assert bf16[-1] < bf16[0] / 4
    assert fp8 != bf16
    for a, b in zip(fp8, bf16, strict=True):
        assert abs(a - b) / b < 0.05


def test_names_are_compared_by_whole_words() -> None:
    assert is_excluded("blocks.1.ffn.up", ["blocks.1"])
    assert is_excluded("blocks.1.ffn.up", ["ffn.up"])
    assert is_excluded("embed.time.fc1", ["head", "embed"])
    assert not is_excluded("blocks.10.ffn.up", ["blocks.1"])
    assert not is_excluded("blocks.0.self_attention.qkv", ["attention", "q"])


def dit() -> DiT:
    """A model whose closing layer is not zero, so that every parameter has a gradient."""
    model = DiT(CONFIG, LocalLayers())
    init_weights(model, seed=1)
    with torch.no_grad():
        assert model.head is not None
        model.head.proj.weight.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(2))
    return model


def pack() -> tuple[PackedBatch, torch.Tensor]:
    """A bf16 pack of three samples with padding, and a target."""
    generator = torch.Generator().manual_seed(4)
    tokens = [torch.randn(grid.num_tokens, CONFIG.patch_dim, generator=generator) for grid in GRIDS]
    texts = [torch.randn(2 + 3 * i, CONFIG.text_dim, generator=generator) for i in range(3)]
    batch = make_pack(GRIDS, texts, tokens, [100.0, 400.0, 700.0], num_tokens=112, num_segments=5, text_tokens=20)
    batch = dataclasses.replace(batch, tokens=batch.tokens.bfloat16(), text=batch.text.bfloat16())
    return batch, torch.randn(112, CONFIG.patch_dim, generator=generator)


def test_probe_compares_a_dit_in_fp8_with_bf16() -> None:
    batch, target = pack()
    report = fp8_probe(dit, batch, target, ALWAYS_BF16)
    assert (report.layers_fp8, report.layers) == (14, 21)  # 7 a block; not the embedder's 6 and the head's
    assert 0 < report.loss_difference < 0.005
    assert 0.005 < report.gradient_difference < 0.05
    assert report.gradient_cosine > 0.999
    assert report.gradient_difference < report.worst_difference < 0.3
    assert report.worst_parameter in dict(dit().named_parameters())


def test_exclusion_is_honoured_and_brings_fp8_nearer() -> None:
    batch, target = pack()
    few = fp8_probe(dit, batch, target, (*ALWAYS_BF16, "blocks.0", "self_attention", "cross_attention"))
    most = fp8_probe(dit, batch, target, ALWAYS_BF16)
    every = fp8_probe(dit, batch, target, ())
    assert (few.layers_fp8, every.layers_fp8) == (2, 21)
    assert few.gradient_difference < most.gradient_difference < every.gradient_difference


def test_probe_without_any_fp8_says_so() -> None:
    batch, target = pack()
    with pytest.raises(NumericsError, match="0 layers in FP8"):
        fp8_probe(dit, batch, target, (*ALWAYS_BF16, "blocks"))


def test_model_is_given_back_as_it_was() -> None:
    model = dit()
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    names = list(model.state_dict())
    with emulated_fp8(model, ALWAYS_BF16):
        assert list(model.state_dict()) == names
        assert isinstance(model.get_submodule("blocks.1.ffn.down"), Fp8Linear)
    assert {name: (type(module), id(module)) for name, module in model.named_modules()} == before
