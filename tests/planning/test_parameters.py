"""Parameters that are planned, beside those of the model on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megavideo.config.find import configs_folder, group_options
from megavideo.config.layout import stage_parts
from megavideo.config.load import load
from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.model.place import PLACE_FEATURES
from megavideo.optim.groups import parameter_groups
from megavideo.optim.matrices import num_matrices
from megavideo.parallel.adapters.adapt import adapted
from megavideo.planning import parameters
from megavideo.planning.parameters import model_parameters, num_parameters

SMALL = ModelConfig(layers=3, width=64, ffn=128, heads=4, text_dim=24, time_dim=32)
LORA = LoraConfig(rank=3, targets=("blocks.*.ffn.*", "blocks.*.self_attention.*", "embed.patch", "*.kv"), base="a")
VARIANTS = [
    SMALL,
    replace(SMALL, modulation="adaln_zero", fps_conditioning=True, qk_norm=False),
    replace(SMALL, place_embedding=True, cross_attn_norm=False, given_channels=20, patch=(2, 2, 2)),
    replace(SMALL, given_channels=20, image_dim=40),
]


def built(config: ModelConfig, part: range | None = None, lora: LoraConfig | None = None) -> DiT:
    build = adapted(lambda layers, part: DiT(config, layers, part=part), lora or LoraConfig())
    with torch.device("meta"):
        return build(LocalLayers(), range(config.layers) if part is None else part)


def described(model: DiT) -> list[tuple[str, tuple[int, ...], bool]]:
    return [(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()]


def planned(config: ModelConfig, part: range | None = None, lora: LoraConfig | None = None) -> list[object]:
    return [(p.name, p.shape, p.trained) for p in model_parameters(config, part, lora)]


@pytest.mark.parametrize("name", group_options(configs_folder(), "model"))
def test_every_preset_has_the_models_parameters(name: str) -> None:
    config = load(TrainRun, "train", [f"model={name}", "data.uri=none"]).model
    model = built(config)
    assert planned(config) == described(model)
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("lora", [None, LORA])
def test_every_kind_of_model_has_them_whole_and_in_stages(config: ModelConfig, lora: LoraConfig | None) -> None:
    assert planned(config, lora=lora) == described(built(config, lora=lora))
    for part in stage_parts(config.layers, 2):
        assert planned(config, part, lora) == described(built(config, part, lora))


@pytest.mark.parametrize("config", VARIANTS)
def test_groups_are_those_of_the_optimizer(config: ModelConfig) -> None:
    model = built(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.1))
    found = model_parameters(config)
    assert [p.name for p in found if p.decays] == decayed
    assert [p.name for p in found if not p.decays] == plain
    assert {p.name for p in found if p.hidden} == {name for name in names.values() if num_matrices(name)}


def test_facts_of_the_model_that_are_said_twice_are_the_same() -> None:
    assert parameters.PLACE_FEATURES == PLACE_FEATURES
