"""Parameters made one by one: values, marks and precision, and what is in memory meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from megavideo.config.schema.model import ModelConfig
from megavideo.model.dit import DiT
from megavideo.model.init import initial_value
from megavideo.model.layers import LocalLayers
from megavideo.parallel.layers.sharding import Shard, mark_sharded
from megavideo.parallel.materialise import _Copier, materialise
from megavideo.parity.spec import ParitySpec
from megavideo.testing.ranks import run_ranks
from tests.parallel.materialise_cases import run_layouts

META = torch.device("meta")


def start(name: str, shape: torch.Size) -> torch.Tensor:
    return initial_value(name, shape, seed=3)


class Pair(nn.Module):
    """A part of a fused matrix, and a norm whose weight is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 6)  # a rank's half of twelve rows
        self.norm = nn.LayerNorm(4)
        for parameter in self.qkv.parameters():
            mark_sharded(parameter, 0, 3)
            parameter.allreduce = True  # type: ignore[attr-defined]
        self.norm.weight.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_this_ranks_parts_with_their_marks(dtype: torch.dtype) -> None:
    with META:
        pair = Pair()
    marks = {name: dict(vars(parameter)) for name, parameter in pair.named_parameters()}
    names, settled = list(marks), []
    materialise(pair, start, dtype=dtype, tp_rank=1, tp=2, settle=settled.append)
    whole = start("qkv.weight", torch.Size((12, 4)))
    assert torch.equal(pair.qkv.weight, whole[[2, 3, 6, 7, 10, 11]].to(dtype))
    assert torch.equal(pair.norm.weight, torch.ones(4, dtype=dtype))
    parameters = dict(pair.named_parameters())
    assert list(parameters) == names and {name: vars(p) for name, p in parameters.items()} == marks
    assert marks["qkv.bias"]["allreduce"] and marks["qkv.weight"]["partition_stride"] == 3
    assert [parameter.requires_grad for parameter in parameters.values()] == [True, True, False, True]
    assert all(one is other for one, other in zip(parameters.values(), settled, strict=True))
    assert all(parameter.is_leaf and parameter.is_contiguous() for parameter in settled)


@pytest.mark.parametrize("shard", [Shard(), Shard(0, 3, 1, 2), Shard(1, 1, 2, 3)])
def test_pieces_that_are_cast_for_a_device_are_the_same_values(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megavideo.parallel.materialise._CHUNK", 30)  # two rows of some parts, less than a third
    copier = _Copier(META, torch.bfloat16)
    for shape in (torch.Size((24, 15)), torch.Size((36,))):
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if shard.dim < len(shape):
            part = torch.full(shard.local_shape(shape), torch.nan, dtype=torch.bfloat16)
            copier.copy(part, shard, whole, shape)
            assert torch.equal(part, shard.take(whole).bfloat16())


def test_a_model_that_has_values_is_filled_as_one_that_has_none() -> None:
    config = ModelConfig(layers=2, width=48, ffn=96, heads=2, latent_channels=4, text_dim=8, time_dim=16)
    with META:
        made = DiT(config, LocalLayers())
    filled = DiT(config, LocalLayers())
    for model in (made, filled):
        materialise(model, start)
    for (name, one), (_, other) in zip(made.named_parameters(), filled.named_parameters(), strict=True):
        assert torch.equal(one, other) and torch.equal(one, start(name, one.shape)), name


@pytest.mark.parametrize("what", ["shared", "buffer", "shape"])
def test_what_has_no_start_value_of_its_own_is_refused(what: str) -> None:
    with META:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        if what == "shared":
            model[1].weight = model[0].weight
        if what == "buffer":
            model.register_buffer("table", torch.zeros(3))
    value: Any = (lambda name, shape: torch.zeros(1)) if what == "shape" else start
    with pytest.raises(AssertionError):
        materialise(model, value)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_layout_begins_with_the_same_values_and_zero3_never_holds_a_whole_model(
    precision: Any, tmp_path: Path
) -> None:
    layouts = ("dp2-zero1", "dp2-zero3", "tp2-sp-zero1", "cp2-ring-zero3", "pp2-dualpipev-zero1")
    spec = ParitySpec(precision=precision)
    with META:
        sizes = [parameter.numel() for parameter in DiT(spec.model, LocalLayers()).parameters()]
    dtype = "torch.float32" if precision == "fp32" else "torch.bfloat16"
    for account in run_ranks(run_layouts, (spec, layouts), tmp_path, processes=2):
        for layout, found in account.items():
            assert found["wrong"] == [] and found["dtypes"] == [dtype] and found["built_on"] == ["meta"], layout
            assert found["fragments"] > 0
        for layout in ("dp2-zero3", "cp2-ring-zero3"):
            # the shares of all made so far, each padded to a multiple of two ranks
            assert account[layout]["elements"] == sum(sizes)
            assert sum(sizes) // 3 < account[layout]["most_held"] <= sum(-(-size // 2) for size in sizes)
