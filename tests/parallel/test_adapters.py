"""Adapters: which layers get one, what is trained, and what the optimizer holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.errors import ConfigError
from megavideo.model.dit import DiT
from megavideo.model.init import initial_value
from megavideo.model.layers import LocalLayers
from megavideo.parallel.adapters.adapt import adapted, check_targets, layer_shapes
from megavideo.parallel.adapters.low_rank import BranchForm, attach, product
from megavideo.parity.oracle import whole_model
from megavideo.parity.spec import ParitySpec
from megavideo.testing.ranks import run_ranks
from tests.parallel.adapter_ranks import held_elements

CONFIG = ModelConfig(layers=2, width=48, ffn=64, heads=2, text_dim=24, time_dim=16)


def lora(*targets: str) -> LoraConfig:
    return LoraConfig(rank=2, alpha=6.0, targets=targets, base="base")


def build(*targets: str) -> DiT:
    return adapted(lambda layers, part: DiT(CONFIG, layers, part=part), lora(*targets))(LocalLayers(), range(2))


def test_the_layers_that_patterns_name_are_trained_and_nothing_else() -> None:
    model = build("blocks.*.self_attention.*", "blocks.1.ffn.up")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = [f"blocks.{i}.self_attention.{name}" for i in (0, 1) for name in ("qkv", "out")] + ["blocks.1.ffn.up"]
    assert trained == {f"{layer}.lora.{matrix}" for layer in layers for matrix in "AB"}
    plain = dict(DiT(CONFIG, LocalLayers()).named_parameters())
    assert plain.keys() == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_a_pattern_for_no_layer_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"blocks\.\*\.mlp.*matches none.*blocks\.\*\.self_attention\.qkv"):
        check_targets(lora("blocks.*.mlp"), CONFIG)
    check_targets(lora("head.proj", "blocks.*"), CONFIG)


def test_a_pipeline_stage_with_nothing_to_train_is_refused() -> None:
    stages = (range(1), range(1, 2))
    with pytest.raises(ConfigError, match="stage of blocks 1 to 1"):
        check_targets(lora("blocks.0.*"), CONFIG, stages)
    check_targets(lora("blocks.0.*", "head.*"), CONFIG, stages)


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_branch_is_the_product_of_its_matrices(blocks: int) -> None:
    """Each matrix of a fused layer by its own A and B, scaled by alpha / rank."""
    layer, generator = nn.Linear(5, 4 * blocks), torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=generator)
    plain = layer(x)
    attach(layer, BranchForm(5, 4 * blocks, blocks), 2, 3.0)
    assert torch.equal(layer(x), plain)  # B is zero
    branch = layer.get_submodule("lora")
    for matrix in (branch.A, branch.B):
        nn.init.normal_(matrix, generator=generator)
    parts = [3.0 * x @ a.T @ b.T for a, b in zip(branch.A.chunk(blocks), branch.B.chunk(blocks), strict=True)]
    assert torch.allclose(layer(x) - plain, torch.cat(parts, dim=1), atol=1e-5)
    assert torch.allclose(x @ product(branch.A, branch.B).T * 3.0, torch.cat(parts, dim=1), atol=1e-5)


def test_adapters_begin_as_nothing_with_a_of_kaiming() -> None:
    """As PEFT: B is zero, A uniform within 1 / sqrt(inputs) (Kaiming, a = sqrt(5)), each drawn by its own name."""
    shape = torch.Size((8, 400))
    first, second = (initial_value(f"blocks.{i}.ffn.up.lora.A", shape, seed=0) for i in (0, 1))
    assert not initial_value("blocks.0.ffn.up.lora.B", torch.Size((64, 8)), seed=0).any()
    assert 0.95 / 20 < float(first.abs().max()) <= 1 / 20
    assert not torch.equal(first, second)
    expected = nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=torch.Generator().manual_seed(0))
    assert float(first.std()) == pytest.approx(float(expected.std()), rel=0.05)


def test_the_optimizer_holds_the_adapters_alone(tmp_path: Path) -> None:
    """Over both ranks: weights and three states of A and B, but for padding, whatever the size of the model."""
    spec = ParitySpec(lora=2, num_layers=1, heads=4, packs_per_step=2)
    layouts = ("dp2-zero0", "dp2-zero1", "dp2-zero3")
    ranks = run_ranks(held_elements, (spec, layouts), tmp_path, processes=2)
    model = whole_model(spec)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    num_frozen = sum(not p.requires_grad for p in model.parameters())
    assert adapters == sum(2 * (shape[0] + shape[1]) for shape in stacked(spec.model))
    for layout in layouts:
        copies = 2 if layout == "dp2-zero0" else 1
        flat, states, gradients, frozen = (sum(rank[layout][i] for rank in ranks) for i in range(4))
        assert copies * adapters <= flat <= 1.05 * copies * adapters, layout
        assert states == 3 * flat, layout
        assert (gradients, frozen) == (0, 2 * num_frozen), layout


def stacked(config: ModelConfig) -> list[tuple[int, int]]:
    """Output and input features of which an adapter has a row of B and a column of A: of a fused layer, k inputs."""
    parts = {"qkv": 3, "kv": 2}
    return [
        (out, parts.get(name.rpartition(".")[2], 1) * inside) for name, (out, inside) in layer_shapes(config).items()
    ]
