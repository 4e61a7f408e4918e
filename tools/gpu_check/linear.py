"""Transformer Engine's linear layers against local ones, against float64, and against FP8's numeric model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from harness import Checks, difference
from torch import nn

from megavideo.config.schema.precision import Fp8Kind, LayersConfig
from megavideo.errors import ConfigError
from megavideo.model.layers import Layers
from megavideo.parallel.layers.fp8 import Fp8Linear
from megavideo.parallel.machine.accelerators import check_layers

TOKENS = 512
# a fused QKV, and the two layers of a feed-forward part
SHAPES = (("qkv", 512, 1536), ("up", 512, 2048), ("down", 2048, 512))
BF16_LIMIT = 5e-3  # measured on a CPU: 3e-3
FP8_LIMIT = 7e-2  # measured on a CPU with current scaling: output 3.7e-2, gradients 5.9e-2
MODEL_LIMIT = 1e-2  # FP8's numeric model rounds the same operands; its sums are kept in other orders and widths
MakeLayers = Callable[[LayersConfig], Layers]
# a layer, its input, and the gradient of its output
Given = tuple[nn.Linear, torch.Tensor, torch.Tensor]


def check_linears(checks: Checks, make: MakeLayers, kinds: tuple[Fp8Kind, ...], device: torch.device) -> None:
    """bf16 and each FP8 scaling, output and gradients of input, weight and bias."""
    for name, in_dim, out_dim in SHAPES:
        torch.manual_seed(0)
        local = nn.Linear(in_dim, out_dim)
        x = torch.randn(TOKENS, in_dim).to(device, torch.bfloat16)
        weight = torch.randn(TOKENS, out_dim).to(device, torch.bfloat16)
        _check_shape(checks, make, kinds, name, (local.to(device, torch.bfloat16), x, weight))


def _check_shape(checks: Checks, make: MakeLayers, kinds: tuple[Fp8Kind, ...], name: str, given: Given) -> None:
    local, x, weight = given
    truth = _run(copy.deepcopy(local).double(), x.double(), weight.double())
    checks.run(f"local {name}, bf16, against float64", lambda: _worst(_run(*given), truth), BF16_LIMIT)
    for kind in ("none", *kinds):
        label, limit = ("bf16", BF16_LIMIT) if kind == "none" else (f"FP8 {kind}", FP8_LIMIT)
        checks.run(
            f"TE {name}, {label}, against float64",
            partial(_te_error, make, kind, name, given, truth),
            limit,
        )
    if "current" in kinds:
        checks.run(
            f"TE {name}, FP8 current, against its numeric model",
            lambda: _worst(_run_te(make, "current", name, given), _run(Fp8Linear(local), x, weight)),
            MODEL_LIMIT,
        )


def check_refusals(checks: Checks, device: torch.device) -> None:
    """A chip before Blackwell is refused MXFP8."""

    def refused() -> None:
        try:
            check_layers(LayersConfig(engine="te", fp8="mxfp8"), device)
        except ConfigError as error:
            assert error.field == "layers.fp8", str(error)
            return
        assert torch.cuda.get_device_capability(device)[0] >= 10, "mxfp8 was not refused"

    checks.run("mxfp8 is refused before Blackwell", refused)


def _te_error(make: MakeLayers, kind: Fp8Kind, name: str, given: Given, truth: list[torch.Tensor]) -> float:
    return _worst(_run_te(make, kind, name, given), truth)


def _run(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of input, weight and bias of sum(layer(x) * weight)."""
    layer.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(weight)
    gradients = [x.grad, *(dict(layer.named_parameters())[name].grad for name in ("weight", "bias"))]
    return [out.detach(), *(g.clone() for g in gradients if g is not None)]


def _run_te(make: MakeLayers, kind: Fp8Kind, name: str, given: Given) -> list[torch.Tensor]:
    local, x, weight = given
    layers = make(LayersConfig(engine="te", fp8=kind))
    out_dim, in_dim = local.weight.shape
    if name == "down":
        layer = layers.row(in_dim, out_dim)
    else:
        layer = layers.column(in_dim, out_dim, blocks=3 if name == "qkv" else 1)
    layer = layer.to(x.device, torch.bfloat16)
    assert list(layer.state_dict()) == ["weight", "bias"], f"state: {list(layer.state_dict())}"
    layer.load_state_dict(local.state_dict())
    # delayed scaling knows no magnitudes before its second pass
    for _ in range(3 if kind == "delayed" else 1):
        layer.zero_grad(set_to_none=True)
        inputs = x.clone().requires_grad_()
        with layers.precision():
            out = layer(inputs)
        out.backward(weight)
    gradients = [inputs.grad, layer.weight.grad, layer.bias.grad]
    assert len([g for g in gradients if g is not None]) == 3, "a gradient is missing"
    return [out.detach(), *gradients]


def _worst(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    return max(difference(a, b) for a, b in zip(found, exact, strict=True))
