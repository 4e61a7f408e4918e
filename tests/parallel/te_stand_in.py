"""A pretended Transformer Engine on a pretended Hopper GPU, for tests of what calls it.

`Linear` has the signature and marks of TE 2.20's; the kernels themselves are tried by `tools/gpu_check.sh`.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from megavideo.parallel.machine import accelerators


class Linear(nn.Module):
    """Stands for `transformer_engine.pytorch.Linear`, as far as one process calls it."""

    casts: list[bool] = []

    def __init__(self, in_features: int, out_features: int, **given: Any) -> None:
        super().__init__()
        known = {"device", "init_method", "parallel_mode", "tp_group", "sequence_parallel", "return_bias"}
        assert set(given) <= known
        self.given, self.return_bias = given, given.get("return_bias", False)
        self.tp_group, self.sequence_parallel = given.get("tp_group"), given.get("sequence_parallel", False)
        size = self.tp_group.size() if self.tp_group else 1
        rows = out_features // size if given.get("parallel_mode") == "column" else out_features
        columns = in_features // size if given.get("parallel_mode") == "row" else in_features
        device = given.get("device", "cuda")
        self.weight = nn.Parameter(torch.empty(rows, columns, device=device))
        self.bias = nn.Parameter(torch.empty(rows, device=device))
        # only the string is known as meta there; for anything else values are made, on a GPU, and marks set
        for parameter in self.parameters() if device != "meta" else ():
            assert not parameter.is_meta
            nn.init.zeros_(parameter)
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
            parameter.partition_dim = 0  # type: ignore[attr-defined]

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0)

    def set_extra_state(self, state: torch.Tensor) -> None: ...

    def forward(self, x: torch.Tensor) -> Any:
        Linear.casts.append(Autocast.active[-1])
        # stands for FP8: a change that a comparison can see
        weight = self.weight * 1.01 if Autocast.active[-1] else self.weight
        if self.return_bias:
            return nn.functional.linear(x, weight), self.bias
        return nn.functional.linear(x, weight, self.bias)


class Autocast:
    """Stands for `transformer_engine.pytorch.autocast`."""

    active: list[bool] = [False]

    def __init__(self, enabled: bool, recipe: Any = None, amax_reduction_group: Any = None) -> None:
        assert recipe is not None or not enabled
        self.enabled = enabled

    def __enter__(self) -> None:
        self.active.append(self.enabled)

    def __exit__(self, *error: Any) -> None:
        self.active.pop()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in in the place of Transformer Engine."""
    package, pytorch = types.ModuleType("transformer_engine"), types.ModuleType("transformer_engine.pytorch")
    common = types.ModuleType("transformer_engine.common")
    hopper = {"is_fp8_available": True, "is_fp8_block_scaling_available": True, "is_mxfp8_available": False}
    for question, answer in hopper.items():
        reason = "" if answer else "Device compute capability 10.0 or higher required for MXFP8 execution."
        setattr(pytorch, question, lambda return_reason, both=(answer, reason): both)
    pytorch.Linear, pytorch.autocast = Linear, Autocast  # type: ignore[attr-defined]
    recipes = ("Float8CurrentScaling", "DelayedScaling", "Float8BlockScaling", "MXFP8BlockScaling")
    common.recipe = types.SimpleNamespace(  # type: ignore[attr-defined]
        **{name: lambda name=name, **given: (name, given) for name in recipes}
    )
    package.pytorch, package.common = pytorch, common  # type: ignore[attr-defined]
    for module in (package, pytorch, common):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(accelerators, "find_spec", lambda name: object())
    Linear.casts.clear()
