"""`megavideo import`: each form in which weights of Wan are published gives the same checkpoint, to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.config.dump import read_config
from megavideo.config.schema.import_ import ImportRun
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.interop.dialects import derive_model, detect_dialect
from megavideo.interop.import_run import import_weights
from megavideo.interop.names import DIALECTS, tensor_rules
from megavideo.interop.wan_reader import WanReader
from megavideo.interop.weights import from_wan, to_wan, wan_config
from megavideo.parallel.engines.fragments import WEIGHT
from megavideo.parallel.layers.sharding import WHOLE, Shard
from tests.interop.wan_files import (
    SMALL,
    original,
    random_state,
    save,
    save_original_config,
    save_sharded,
    transformer,
)

SIZES = (
    SMALL,
    dataclasses.replace(SMALL, layers=3, width=96, ffn=200, heads=4, latent_channels=16, cross_attn_norm=False),
    dataclasses.replace(SMALL, layers=1, width=64, ffn=32, heads=4, latent_channels=48, patch=(2, 2, 2)),
    dataclasses.replace(SMALL, given_channels=12, image_dim=20),
)


def imported(src: Path, tmp_path: Path, **settings: object) -> CheckpointReader:
    """The checkpoint of the folder that the verb made."""
    import_weights(ImportRun(src=str(src), out=str(tmp_path / "out"), **settings))  # type: ignore[arg-type]
    return CheckpointReader(find_checkpoint(tmp_path / "out"))


def holds(reader: CheckpointReader, state: dict[str, torch.Tensor]) -> None:
    """The checkpoint has exactly these weights."""
    whole = reader.whole(WEIGHT)
    assert whole.keys() == state.keys()
    assert [name for name in whole if not torch.equal(whole[name], state[name])] == []


@pytest.mark.parametrize("config", SIZES, ids=["small", "wider", "forty_eight", "image_embedding"])
@pytest.mark.parametrize("form", ["file", "sharded", "diffusers"])
def test_every_form_is_imported_to_the_bit_and_goes_back(tmp_path: Path, config: ModelConfig, form: str) -> None:
    state = random_state(config)
    tensors = to_wan(state, config, "diffusers" if form == "diffusers" else "wan")
    if form == "file":
        reader = imported(save(tmp_path / "wan.safetensors", tensors), tmp_path, heads=config.heads)
    elif form == "sharded":
        save_sharded(tmp_path / "wan", tensors)
        said = {"patch_size": list(config.patch), "cross_attn_norm": config.cross_attn_norm}
        save_original_config(tmp_path / "wan", config, **said)
        reader = imported(tmp_path / "wan", tmp_path)
    else:
        model = transformer(config)
        model.load_state_dict(tensors)
        model.save_pretrained(tmp_path / "wan")
        reader = imported(tmp_path / "wan", tmp_path)
    holds(reader, state)
    back = to_wan(reader.whole(WEIGHT), config, "wan")
    assert all(torch.equal(back[name], tensor) for name, tensor in to_wan(state, config, "wan").items())


@pytest.mark.parametrize(
    "form",
    ["diffusion_model.{}", "{}.{{}}".format("model.diffusion_model"), "model.{}", "module.{}", "_orig_mod.module.{}"],
)
def test_prefixes_are_taken_off(tmp_path: Path, form: str) -> None:
    tensors = {form.format(name): tensor for name, tensor in original().items()}
    holds(imported(save(tmp_path / "wan.safetensors", tensors), tmp_path, heads=2), random_state(SMALL))


def test_wrappers_within_names_are_taken_off(tmp_path: Path) -> None:
    tensors = {
        name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."): tensor
        for name, tensor in original().items()
    }
    assert tensors.keys() != original().keys()
    holds(imported(save(tmp_path / "wan.safetensors", tensors), tmp_path, heads=2), random_state(SMALL))


@pytest.mark.parametrize("names", [("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")])
@pytest.mark.parametrize("expert", ["high", "low"])
def test_one_of_two_experts(tmp_path: Path, names: tuple[str, str], expert: str) -> None:
    for seed, name in enumerate(names):
        tensors = to_wan(random_state(SMALL, seed), SMALL)
        save(tmp_path / "pair" / name / "diffusion_pytorch_model.safetensors", tensors)
    reader = imported(tmp_path / "pair", tmp_path, expert=expert, heads=2, boundary=0.875)
    holds(reader, random_state(SMALL, 0 if expert == "high" else 1))
    levels = read_config(TrainRun, tmp_path / "out" / "config.yaml").diffusion.sigma_range
    assert levels == ((0.875, 1.0) if expert == "high" else (0.0, 0.875))


def test_weights_keep_their_type(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in original().items()}
    reader = imported(save(tmp_path / "wan.safetensors", tensors), tmp_path, heads=2)
    numel = sum(tensor.numel() for tensor in tensors.values())
    assert 2 * numel < reader.manifest.size_bytes < 3 * numel
    holds(reader, {name: tensor.bfloat16().float() for name, tensor in random_state(SMALL).items()})


@pytest.mark.parametrize("image_dim", [None, 20])
def test_image_to_video_models_are_recognised(image_dim: int | None) -> None:
    """By their shapes; names and shapes of every tensor are those of diffusers' class."""
    added = {"image_dim": image_dim, "added_kv_proj_dim": None if image_dim is None else SMALL.width}
    theirs = {n: tuple(t.shape) for n, t in transformer(in_channels=28, **added).state_dict().items()}
    config = derive_model(theirs, detect_dialect(theirs, "x"), None, 2, "x")
    assert config == dataclasses.replace(SMALL, given_channels=20, image_dim=image_dim)
    assert {name for rule in tensor_rules(config) for name in rule.theirs} == theirs.keys()
    assert wan_config(config)["in_channels"] == 28
    # and the original names are as many, each for one of these
    original_names = {name for rule in tensor_rules(config, "wan") for name in rule.theirs}
    assert len(original_names) == len(theirs)
    assert any("k_img" in name for name in original_names) == (image_dim is not None)


def test_further_channels_follow_those_of_the_latent() -> None:
    config = dataclasses.replace(SMALL, given_channels=20)
    rule = next(rule for rule in tensor_rules(config) if rule.ours == "embed.patch.weight")
    theirs = torch.randn(48, 28, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    ours = rule.to_ours([theirs])
    latent, given = torch.randn(1, 8, 1, 2, 2), torch.randn(1, 20, 1, 2, 2)
    expected = torch.nn.functional.conv3d(torch.cat([latent, given], 1), theirs).flatten()
    tokens = torch.cat([latent, given], 1).permute(0, 2, 3, 4, 1).flatten()  # cell by cell, as the embedder joins them
    assert torch.allclose(ours @ tokens, expected, atol=1e-5)
    assert torch.equal(rule.to_theirs(ours, config)[rule.theirs[0]], theirs)


def test_heads_follow_from_the_width_where_nothing_tells() -> None:
    wide = dataclasses.replace(SMALL, width=256, heads=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in to_wan(random_state(wide), wide).items()}
    assert derive_model(shapes, "diffusers", None, None, "x").heads == 2


@pytest.mark.parametrize("dialect", DIALECTS)
def test_ranks_read_the_ranges_of_their_shards(tmp_path: Path, dialect: str) -> None:
    state = random_state(SMALL)
    path = save(tmp_path / "wan.safetensors", to_wan(state, SMALL, dialect))  # type: ignore[arg-type]
    reader = WanReader.at(path, heads=2)
    reader.check()
    for name, whole in state.items():
        blocks = 3 if ".qkv." in name else 2 if ".kv." in name else 1
        shards = [WHOLE] + [Shard(0, blocks, index, 2) for index in range(2) if whole.shape[0] % (2 * blocks) == 0]
        if whole.dim() == 2:
            shards += [Shard(1, 1, index, 2) for index in range(2)]
        for shard in shards:
            part = shard.take(whole).flatten()
            for start, end in ((0, len(part)), (len(part) // 3, len(part) // 3 + max(1, len(part) // 4))):
                assert torch.equal(reader.read(WEIGHT, name, shard, start, end - start), part[start:end]), (name, shard)


def test_a_deeper_model_is_no_longer_taken_for_a_shallower_one() -> None:
    deep = dataclasses.replace(SMALL, layers=3)
    with pytest.raises(Exception, match=r"unexpected, 27 tensors: 'blocks\.2\.attn1"):
        from_wan(to_wan(random_state(deep), deep), SMALL)
