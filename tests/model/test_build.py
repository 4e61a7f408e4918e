"""Every shape in configs/model builds with the size of its name; starts follow seed and name; Wan's form is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from megavideo.config.build import build
from megavideo.config.schema.model import ModelConfig
from megavideo.errors import CheckpointError
from megavideo.interop.weights import from_wan, to_wan
from megavideo.model.dit import DiT
from megavideo.model.init import init_weights, initial_value
from megavideo.model.layers import LocalLayers

SMALL = ModelConfig(layers=2, width=48, ffn=64, heads=2, latent_channels=4, text_dim=12, time_dim=16)
# parameters in billions; Wan 2.1's "1.3B" counts 1.42 with its embedders
SIZES = {"wan_1b": 1.42, "dit_5b": 5.0, "wan_14b": 14.3, "dit_30b": 30.0}


def read_config(repo_root: Path, name: str) -> ModelConfig:
    """The model of one file of configs/model."""
    values = OmegaConf.to_container(OmegaConf.load(repo_root / "configs" / "model" / f"{name}.yaml"))
    assert isinstance(values, dict)
    return build(ModelConfig, values)


def count_on_meta(config: ModelConfig) -> int:
    """Parameters of a model that takes no memory."""
    with torch.device("meta"):
        model = DiT(config, LocalLayers())
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_config_builds(repo_root: Path) -> None:
    names = sorted(path.stem for path in (repo_root / "configs" / "model").glob("*.yaml"))
    assert {"micro", "small", *SIZES} <= set(names)
    for name in names:
        assert count_on_meta(read_config(repo_root, name)) > 0


@pytest.mark.parametrize("name", SIZES)
def test_models_have_the_size_of_their_name(name: str, repo_root: Path) -> None:
    billions = count_on_meta(read_config(repo_root, name)) / 1e9
    assert billions == pytest.approx(SIZES[name], rel=0.03)


@pytest.mark.parametrize("modulation", ["adaln", "adaln_zero"])
def test_start_follows_from_seed_and_name(modulation: str) -> None:
    config = build(ModelConfig, dataclasses.asdict(SMALL) | {"modulation": modulation})
    models = {}
    for key, layers, seed in (("a", 2, 7), ("deeper", 3, 7), ("other", 2, 8)):
        torch.manual_seed(len(models))
        model = DiT(dataclasses.replace(config, layers=layers), LocalLayers())
        init_weights(model, seed)
        models[key] = dict(model.named_parameters())
    for name, parameter in models["a"].items():
        assert torch.equal(parameter, models["deeper"][name]), name
        assert torch.equal(parameter, initial_value(name, parameter.shape, 7)), name
        assert torch.equal(parameter, models["other"][name]) == (parameter.unique().numel() == 1), name
    assert not torch.equal(models["a"]["blocks.0.ffn.up.weight"], models["a"]["blocks.1.ffn.up.weight"])


def test_fused_matrices_start_like_single_ones() -> None:
    """A fused QKV is spread as three square matrices are, not as one of three times the height."""
    bound = (6 / (48 + 48)) ** 0.5
    for name, count in (("blocks.0.self_attention.qkv.weight", 3), ("blocks.0.cross_attention.kv.weight", 2)):
        value = initial_value(name, torch.Size((count * 48, 48)), seed=0)
        assert bound * 0.98 < float(value.abs().max()) <= bound


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"modulation": "adaln_zero"}, "modulation=adaln_zero"),
        ({"qk_norm": False}, "qk_norm=False"),
        ({"fps_conditioning": True}, "fps_conditioning=True"),
        ({"place_embedding": True}, "place_embedding=True"),
    ],
)
def test_what_wan_cannot_express_is_refused(change: dict[str, object], part: str) -> None:
    config = build(ModelConfig, dataclasses.asdict(SMALL) | change)
    state = DiT(config, LocalLayers()).state_dict()
    for convert in (to_wan, from_wan):
        with pytest.raises(CheckpointError, match=part) as caught:
            convert(state, config)
        assert "Remedy: " in str(caught.value)


def test_a_missing_tensor_is_named() -> None:
    exported = to_wan(DiT(SMALL, LocalLayers()).state_dict(), SMALL)
    del exported["blocks.1.attn1.to_k.weight"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn1\.to_k\.weight"):
        from_wan(exported, SMALL)
