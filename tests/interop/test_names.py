"""Either dialect holds the same weights, and each converts to the bit."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from megavideo.config.schema.model import ModelConfig
from megavideo.interop.names import Dialect
from megavideo.interop.weights import from_wan, to_wan
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers

CONFIG = ModelConfig(layers=2, width=48, ffn=64, heads=2, text_dim=24, time_dim=16)


def state() -> dict[str, torch.Tensor]:
    model = DiT(CONFIG, LocalLayers())
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("dialect", ["diffusers", "wan"])
def test_round_trip_is_bit_equal(dialect: Dialect) -> None:
    ours = state()
    again = from_wan(to_wan(ours, CONFIG, dialect), CONFIG, dialect)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_the_dialects_hold_the_same_tensors() -> None:
    """By diffusers' own converter of the original names."""
    ours = state()
    converted = convert_wan_transformer_to_diffusers(to_wan(ours, CONFIG, "wan"))
    expected = to_wan(ours, CONFIG)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
