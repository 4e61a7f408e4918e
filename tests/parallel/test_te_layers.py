"""The layers of Transformer Engine as this project builds and calls them, with a stand-in for its `Linear`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megavideo.config.layout import parse_layout
from megavideo.config.schema.precision import ALWAYS_BF16, LayersConfig
from megavideo.errors import ConfigError
from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.dit import DiT
from megavideo.model.init import initial_value
from megavideo.model.layers import LocalLayers
from megavideo.parallel.fp8_probe import fp8_probe
from megavideo.parallel.layers import te_layers
from megavideo.parallel.layers.fp8 import build_recipe
from megavideo.parallel.layers.layer_set import ParallelLayers
from megavideo.parallel.layers.te_layers import TeLayers, build_layers, keep_excluded_in_bf16
from megavideo.parallel.materialise import materialise
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh
from tests.parallel import te_stand_in
from tests.parallel.te_stand_in import Autocast, Linear
from tests.parallel.test_fp8 import CONFIG, dit, pack

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
TE = LayersConfig(engine="te")


@pytest.fixture(autouse=True)
def te(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has the stand-in."""
    te_stand_in.install(monkeypatch)
    te_layers._te_linear.cache_clear()
    yield
    te_layers._te_linear.cache_clear()


@pytest.fixture
def alone() -> tuple[ProcessMesh, Groups]:
    """The mesh of one process; its groups are never asked for anything."""
    group: Any = types.SimpleNamespace(size=lambda: 1)
    mesh = ProcessMesh.of(parse_layout("zero1"), CONFIG.heads, 0, 1)
    return mesh, Groups(**{field.name: group for field in fields(Groups)})


@pytest.fixture
def model(alone: tuple[ProcessMesh, Groups]) -> DiT:
    made = DiT(CONFIG, TeLayers(*alone, LayersConfig(engine="te", fp8="current"), CPU_FLASH))
    made.load_state_dict(dit().state_dict())
    return made


def test_one_setting_chooses_the_layers(alone: tuple[ProcessMesh, Groups]) -> None:
    assert type(build_layers(LayersConfig(), *alone, CPU_FLASH, CPU)) is ParallelLayers
    assert type(build_layers(TE, *alone, CPU_FLASH, GPU)) is TeLayers
    with pytest.raises(ConfigError):
        build_layers(TE, *alone, CPU_FLASH, CPU)


def test_weights_have_the_local_names_and_no_other_state(model: DiT) -> None:
    local = DiT(CONFIG, LocalLayers())
    assert list(model.state_dict()) == list(local.state_dict())
    for (name, mine), (other, theirs) in zip(model.named_parameters(), local.named_parameters(), strict=True):
        assert (name, mine.shape, mine.dtype) == (other, theirs.shape, theirs.dtype)
        assert not getattr(mine, "tensor_model_parallel", False)


def test_layers_are_built_on_meta_and_given_values_later(alone: tuple[ProcessMesh, Groups]) -> None:
    with torch.device("meta"):
        made = DiT(CONFIG, TeLayers(*alone, TE, CPU_FLASH))
    assert all(parameter.is_meta for parameter in made.parameters())
    local = DiT(CONFIG, LocalLayers())
    for one in (made, local):
        materialise(one, lambda name, shape: initial_value(name, shape, 5))
    for (name, mine), (_, theirs) in zip(made.named_parameters(), local.named_parameters(), strict=True):
        assert torch.equal(mine, theirs) and not getattr(mine, "tensor_model_parallel", False), name


def test_te_layers_compute_what_local_layers_do(model: DiT) -> None:
    batch, _ = pack()
    with torch.no_grad():
        for layer in (module for module in model.modules() if hasattr(module, "in_fp8")):
            layer.in_fp8 = False  # type: ignore[assignment]
        assert torch.equal(model.bfloat16()(batch), dit().bfloat16()(batch))
    assert Linear.casts == [False] * 14


def test_fp8_reaches_the_blocks_but_for_what_is_excluded(model: DiT) -> None:
    exclude = (*ALWAYS_BF16, "blocks.0", "cross_attention.kv")
    remaining = keep_excluded_in_bf16(model, LayersConfig(engine="te", fp8="current", fp8_exclude=exclude))
    assert remaining == tuple(
        f"blocks.1.{name}"
        for name in (
            "self_attention.qkv",
            "self_attention.out",
            "cross_attention.q",
            "cross_attention.out",
            "ffn.up",
            "ffn.down",
        )
    )
    batch, target = pack()
    report = fp8_probe(lambda: model, batch, target, ())
    assert (report.layers_fp8, report.layers) == (6, 14)
    # the first run in FP8, the second in bf16
    assert Linear.casts == [False] * 7 + [True] * 3 + [False] + [True] * 3 + [False] * 14
    assert Autocast.active == [False]


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_shards_are_marked_as_the_local_ones(sequence_parallel: bool) -> None:
    pair: Any = types.SimpleNamespace(size=lambda: 2)
    column = te_layers.te_column(64, 192, 3, pair, sequence_parallel=sequence_parallel)
    with torch.device("meta"):  # where TE sets no marks of its own
        whole = te_layers.te_column(64, 128, 2, pair, sequence_parallel=sequence_parallel, whole_input=True)
        row = te_layers.te_row(256, 64, pair, sequence_parallel=sequence_parallel)
    assert (column.weight.shape, whole.weight.shape, row.weight.shape) == ((96, 64), (64, 64), (64, 128))
    for layer, dim, blocks in ((column, 0, 3), (whole, 0, 2), (row, 1, 1)):
        assert (layer.weight.partition_dim, layer.weight.partition_stride) == (dim, blocks)
    assert (column.bias.partition_stride, whole.bias.partition_stride) == (3, 2)
    assert column.given["sequence_parallel"] is row.given["sequence_parallel"] is sequence_parallel
    # what every rank holds whole is neither gathered nor reduced by the layer
    assert "tp_group" not in whole.given


def test_row_bias_is_added_once_and_its_gradient_summed_under_sp(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[Any] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: summed.append(group) or tensor.mul_(2))
    pair: Any = types.SimpleNamespace(size=lambda: 2)
    for sequence_parallel in (False, True):
        row = te_layers.te_row(8, 4, pair, sequence_parallel=sequence_parallel)
        with torch.no_grad():
            row.bias.fill_(3.0)
        out = row(torch.zeros(5, 4))
        assert torch.equal(out, torch.full((5, 4), 3.0))
        out.sum().backward()
        assert row.bias.grad.tolist() == [10.0 if sequence_parallel else 5.0] * 4
    assert summed == [pair]


def test_recipes_are_named_by_the_setting() -> None:
    assert build_recipe("none") is None
    assert build_recipe("current") == ("Float8CurrentScaling", {})
    assert build_recipe("block") == ("Float8BlockScaling", {})
    assert build_recipe("mxfp8") == ("MXFP8BlockScaling", {})
    assert build_recipe("delayed", shared_scales=True) == ("DelayedScaling", {"reduce_amax": True})
    assert build_recipe("delayed") == ("DelayedScaling", {"reduce_amax": False})
