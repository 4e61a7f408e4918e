"""Shapes by one rule: what they hold and cost, and the one of lowest loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megavideo.config.find import configs_folder, group_options
from megavideo.config.load import load
from megavideo.config.schema.fit import FitRun, ShapeConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.errors import ConfigError
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.planning.flops import BlockShape, train_flops
from megavideo.planning.parameters import num_parameters
from megavideo.scaling.law import optimum
from megavideo.scaling.recommend import check_shape, recommend
from megavideo.scaling.shapes import flops_per_token, shaped, shapes
from tests.scaling.laws import LAWS, SIX_ND

SMALL = ModelConfig(layers=2, width=64, ffn=256, heads=4, text_dim=32, latent_channels=4, time_dim=32)
WAN = replace(SMALL, text_dim=4096, latent_channels=16, time_dim=256)


def counted(model: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in DiT(model, LocalLayers()).parameters())


@pytest.mark.parametrize(
    "change",
    [
        {}, {"modulation": "adaln_zero"}, {"qk_norm": False}, {"cross_attn_norm": False}, {"fps_conditioning": True},
        {"place_embedding": True}, {"given_channels": 5}, {"patch": (2, 1, 1)},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_are_those_of_the_model(change: dict[str, object]) -> None:
    model = replace(SMALL, **change)  # type: ignore[arg-type]
    assert num_parameters(model) == counted(model)


def test_parameters_of_every_model_of_the_project() -> None:
    for name in group_options(configs_folder(), "model"):
        model = load(FitRun, "fit", [f"model={name}"]).model
        assert num_parameters(model) == counted(model), name


def test_the_rule_of_shapes() -> None:
    found = shaped(WAN, ShapeConfig(), 5120)
    assert (found.layers, found.width, found.ffn, found.heads, found.head_dim) == (40, 5120, 20480, 40, 128)
    small = shaped(WAN, ShapeConfig(aspect=64, head_dim=32, ffn_ratio=2.7), 64)
    assert (small.layers, small.ffn, small.heads) == (2, 192, 2)  # never fewer than two layers
    assert small.text_dim == WAN.text_dim
    sizes = [num_parameters(shape) for shape in shapes(WAN, ShapeConfig())]
    assert sizes == sorted(sizes) and sizes[-1] > 1e12


def test_the_best_shape_is_that_of_lowest_loss() -> None:
    found = recommend(LAWS[1], 1e22, WAN, ShapeConfig(), 75_600, 512)
    each = [
        float(LAWS[1].loss(num_parameters(shape), 1e22 / flops_per_token(shape, 75_600, 512)))
        for shape in shapes(WAN, ShapeConfig())
    ]
    assert found.best.loss == min(each) and not found.at_edge
    assert found.best in found.around and len(found.around) == 7
    cost = train_flops(BlockShape(found.best.layers, found.best.width, found.best.ffn), [(75_600, 512)]) / 75_600
    assert cost * found.best.tokens == pytest.approx(1e22)
    # attention takes what 6 N D would have left for tokens
    assert found.best.tokens < 0.8 * optimum(LAWS[1], SIX_ND, 1e22).tokens


def test_an_edge_is_told() -> None:
    assert recommend(LAWS[1], 1e8, WAN, ShapeConfig(), 1024, 0).at_edge


def test_heads_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="head_dim"):
        check_shape(ShapeConfig(head_dim=9))


def test_room_is_free_of_torch(repo_root: Path) -> None:
    import subprocess
    import sys

    code = "import sys, megavideo.scaling.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo_root, check=False).returncode == 0
