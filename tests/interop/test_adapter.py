"""Adapters of a run merged, written for other tools, and taken from theirs: the same output, or one message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from megavideo.checkpoint.base import Base
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.reshard import reshard
from megavideo.cli.main import main
from megavideo.config.dump import from_yaml
from megavideo.config.schema.train import TrainRun
from megavideo.errors import CheckpointError
from megavideo.generate.loaded_run import load_run
from megavideo.interop.adapter_file import WEIGHTS_FILE, read_adapter
from megavideo.interop.adapter_run import export_adapter, load_adapter, merge_adapter
from megavideo.interop.weights import to_wan, wan_config
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.parallel.adapters.adapt import adapted
from megavideo.types import Grid
from tests.interop.adapter_cases import write_adapted, write_base
from tests.model.packs import make_pack

GRID = Grid(2, 3, 2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of whole weights, and adapters beside each layer of its blocks."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapted(write_base(folder), folder / "adapted")
    return folder


def config_of(run: Path) -> TrainRun:
    return from_yaml(TrainRun, CheckpointReader(find_checkpoint(run)).manifest.config, source=str(run))


def inputs(config: TrainRun) -> tuple[torch.Tensor, torch.Tensor]:
    """A latent [C, t, h, w] and a text [5, D]."""
    generator = torch.Generator().manual_seed(1)
    shape = (config.model.latent_channels, GRID.t, 2 * GRID.h, 2 * GRID.w)
    return torch.randn(shape, generator=generator), torch.randn(5, config.model.text_dim, generator=generator)


def output(model: DiT, config: TrainRun) -> torch.Tensor:
    from megavideo.data.patches import patchify

    latent, text = inputs(config)
    with torch.no_grad():
        return model(make_pack([GRID], [text], [patchify(latent, config.model.patch)], [321.0]))


def unmerged(run: Path, state: str = "ema") -> torch.Tensor:
    """The output of the model that training computes with: the base's weights, and branches beside them."""
    config, reader = config_of(run), CheckpointReader(find_checkpoint(run))
    base = Base(str(config.lora.base))
    build = adapted(lambda layers, part: DiT(config.model, layers, part=part), config.lora)
    model = build(LocalLayers(), range(config.model.layers))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            of_base = not parameter.requires_grad
            parameter.copy_(
                base.value(name, parameter.shape) if of_base else reader.value(state, name, parameter.shape)
            )
    return output(model, config)


def sampled(run: Path, weights: str = "ema") -> torch.Tensor:
    """The output of the model that `megavideo sample` opens; the folder has encoders of its own."""
    opened = load_run(run, weights=weights, dtype=torch.float32, device=CPU)
    return output(opened.model, opened.config)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("weights", "state"), [("ema", "ema"), ("raw", "weight")])
def test_merged_weights_give_the_output_of_base_and_adapters(
    runs: Path, tmp_path: Path, weights: str, state: str
) -> None:
    merge_adapter(runs / "adapted", None, tmp_path / "merged")
    shutil.copytree(runs / "base" / "encoders", tmp_path / "merged" / "encoders")
    shutil.copyfile(runs / "base" / "sampling.json", tmp_path / "merged" / "sampling.json")
    found = sampled(tmp_path / "merged", weights)
    assert relative(found, unmerged(runs / "adapted", state)) < 1e-5
    assert relative(found, sampled(runs / "base")) > 1e-2
    assert CheckpointReader(find_checkpoint(tmp_path / "merged")).manifest.base is None


def test_a_checkpoint_of_adapters_is_small_and_names_its_base(runs: Path, tmp_path: Path) -> None:
    adapted_run, base = (CheckpointReader(find_checkpoint(runs / name)).manifest for name in ("adapted", "base"))
    assert all(".lora." in name for name in adapted_run.shapes)
    assert adapted_run.size_bytes < base.size_bytes / 2
    assert adapted_run.base == Base(runs / "base").reference
    reshard(find_checkpoint(runs / "adapted"), tmp_path / "moved", 3)
    again = CheckpointReader(find_checkpoint(tmp_path / "moved")).manifest
    assert (again.base, len(again.files)) == (adapted_run.base, 3)


def reference(runs: Path) -> WanTransformer3DModel:
    """diffusers' model with the weights of the base."""
    config, base = config_of(runs / "adapted"), Base(runs / "base")
    model = WanTransformer3DModel(**wan_config(config.model))
    whole = {name: base.value(name, shape) for name, shape in base.shapes.items()}
    model.load_state_dict(to_wan(whole, config.model))
    return model


def test_peft_gives_our_output(runs: Path, tmp_path: Path) -> None:
    """By the steps of `load_lora_weights`, in diffusers' model of the base: file, names, split, and scale."""
    pytest.importorskip("peft", reason="peft is not installed")
    config, theirs = config_of(runs / "adapted"), reference(runs)
    before = reference_output(theirs, config)
    export_adapter(runs / "adapted", tmp_path, "ema")
    given = {"weight_name": WEIGHTS_FILE, "return_lora_metadata": True}
    tensors, metadata = WanPipeline.lora_state_dict(str(tmp_path), **given)
    WanPipeline.load_lora_into_transformer(tensors, transformer=theirs, metadata=metadata)
    expected = unmerged(runs / "adapted")
    assert relative(reference_output(theirs, config), expected) < 1e-5
    assert relative(before, expected) > 1e-2


def test_a_folder_that_peft_wrote_gives_its_output(runs: Path, tmp_path: Path) -> None:
    """With its scale in `adapter_config.json`, and adapters of two matrices out of a fused layer's three."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config, theirs = config_of(runs / "adapted"), reference(runs)
    torch.manual_seed(0)
    options = peft.LoraConfig(r=3, lora_alpha=12, target_modules=["to_q", "to_v"], init_lora_weights=False)
    peft.get_peft_model(theirs, options).save_pretrained(str(tmp_path / "theirs"))
    load_adapter(tmp_path / "theirs", str(runs / "base"), tmp_path / "loaded")
    assert relative(unmerged(tmp_path / "loaded"), reference_output(theirs, config)) < 1e-5


def reference_output(model: WanTransformer3DModel, config: TrainRun) -> torch.Tensor:
    from megavideo.data.patches import patchify

    latent, text = inputs(config)
    with torch.no_grad():
        out = model(latent[None], torch.tensor([321.0]), text[None], return_dict=False)[0]
    return patchify(out[0], config.model.patch)


def as_wan(tensors: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """PEFT's tensors in the original network's names, with alpha beside each pair."""
    theirs = {
        "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
        "attn1.to_out.0": "self_attn.o", "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k",
        "attn2.to_v": "cross_attn.v", "attn2.to_out.0": "cross_attn.o", "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2", "transformer.": "diffusion_model.", "lora_A": "lora_down", "lora_B": "lora_up",
    }  # fmt: skip
    found = {}
    for name, values in tensors.items():
        for ours, other in theirs.items():
            name = name.replace(ours, other)
        found[name] = values
        found[name.rpartition(".lora_")[0] + ".alpha"] = torch.tensor(alpha)
    return found


def as_kohya(tensors: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The same with a layer's name in one word."""
    found = {}
    for name, values in as_wan(tensors, alpha).items():
        layer, kind = name.removeprefix("diffusion_model.").split("." + ("alpha" if "alpha" in name else "lora_"), 1)
        found[f"lora_unet_{layer.replace('.', '_')}.{'lora_' + kind if kind else 'alpha'}"] = values
    return found


@pytest.mark.parametrize("dialect", [None, as_wan, as_kohya])
def test_three_dialects_are_taken_for_the_same_adapters(
    runs: Path, tmp_path: Path, dialect: Callable[..., dict[str, torch.Tensor]] | None
) -> None:
    export_adapter(runs / "adapted", tmp_path, "ema")
    file = tmp_path / WEIGHTS_FILE
    if dialect is not None:
        save_file(dialect(load_file(file), 6.0), file)
    load_adapter(file, str(runs / "base"), tmp_path / "loaded")
    assert torch.equal(unmerged(tmp_path / "loaded"), unmerged(runs / "adapted"))
    assert relative(sampled(tmp_path / "loaded"), unmerged(runs / "adapted")) < 1e-5


def test_a_part_of_a_fused_layer_without_adapter_stays_as_it_is(runs: Path, tmp_path: Path) -> None:
    export_adapter(runs / "adapted", tmp_path, "ema")
    tensors = {name: values for name, values in load_file(tmp_path / WEIGHTS_FILE).items() if "to_k" not in name}
    save_file(tensors, tmp_path / "some.safetensors")
    adapter = read_adapter(tmp_path / "some.safetensors", config_of(runs / "base").model)
    down, up = adapter.matrices["blocks.0.self_attention.qkv"]
    assert (
        [bool(part.any()) for part in down.chunk(3)]
        == [bool(part.any()) for part in up.chunk(3)]
        == [True, False, True]
    )
    assert adapter.alpha == adapter.rank  # the metadata is gone


def damaged(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = "transformer.blocks.1.attn1.to_q.lora_A.weight"
    if how == "deeper":
        return tensors | {key.replace("blocks.1.", "blocks.7."): value.clone() for key, value in tensors.items()}
    if how == "shallower":
        return {key: value for key, value in tensors.items() if "blocks.1." not in key}
    if how == "wider":
        return tensors | {name: torch.zeros(3, 96)}
    if how == "half":
        return {key: value for key, value in tensors.items() if key != name}
    if how == "ranks":
        return tensors | {name: torch.zeros(4, 48)}
    if how == "difference":
        return as_wan(tensors, 6.0) | {"diffusion_model.blocks.0.self_attn.q.diff_b": torch.zeros(48)}
    if how == "no alpha":
        return {key: value for key, value in as_kohya(tensors, 6.0).items() if "alpha" not in key}
    return {f"unknown.{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("deeper", r"belong to no layer of this model: transformer\.blocks\.7\."),
        ("shallower", "with 1 blocks, and this one has 2"),
        ("wider", r"another width: the adapters of blocks\.1\.self_attention\.qkv"),
        ("half", r"missing: transformer\.blocks\.1\.attn1\.to_q \(A\)"),
        ("ranks", r"has ranks \[3, 4\]"),
        ("difference", r"differences of whole weights, not adapters: diffusion_model\.blocks\.0\.self_attn\.q\.diff_b"),
        ("no alpha", r"missing: .*\(alpha\)"),
        ("unknown", "no adapters of a known dialect: it begins with unknown"),
    ],
)
def test_what_does_not_fit_to_the_last_tensor_is_refused_and_nothing_written(
    runs: Path, tmp_path: Path, how: str, told: str
) -> None:
    export_adapter(runs / "adapted", tmp_path, "ema")
    save_file(damaged(load_file(tmp_path / WEIGHTS_FILE), how), tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=told):
        load_adapter(tmp_path / "bad.safetensors", str(runs / "base"), tmp_path / "loaded")
    assert not (tmp_path / "loaded").exists()


def test_another_base_is_refused_and_one_that_was_moved_is_found(runs: Path, tmp_path: Path) -> None:
    for name in ("base", "adapted"):
        shutil.copytree(runs / name, tmp_path / name)
    write_adapted(tmp_path / "base", tmp_path / "adapted2")
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"base/checkpoints/step_00000005 is not there.*base=WHERE"):
        merge_adapter(tmp_path / "adapted2", None, tmp_path / "merged")
    merge_adapter(tmp_path / "adapted2", str(tmp_path / "moved"), tmp_path / "merged")
    with pytest.raises(CheckpointError, match=r"trained beside .* is another"):
        merge_adapter(tmp_path / "adapted2", str(tmp_path / "merged"), tmp_path / "again")
    with pytest.raises(CheckpointError, match="holds adapters alone, and is no base"):
        merge_adapter(tmp_path / "adapted2", str(tmp_path / "adapted"), tmp_path / "again")
    with pytest.raises(CheckpointError, match="holds no adapters"):
        export_adapter(tmp_path / "moved", tmp_path / "out", "ema")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lora", "load", "FILE", "out=OUT"], "base: is required by load"),
        (["lora", "export", "RUN", "out=OUT", "base=b"], "has no effect on export"),
        (["lora", "merge", "RUN", "out=OUT", "weights=raw"], "has no effect on merge"),
        (["lora", "split", "RUN", "out=OUT"], "must be one of export, merge, load"),
    ],
)
def test_words_that_do_not_belong_together_are_refused(
    words: list[str], told: str, tmp_path: Path, capsys: Any
) -> None:
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in words]) == 2
    assert told in capsys.readouterr().err


def test_the_verb_exports(runs: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["lora", "export", str(runs / "adapted"), f"out={tmp_path / 'out'}"]) == 0
    assert WEIGHTS_FILE in capsys.readouterr().out
    assert len(load_file(tmp_path / "out" / WEIGHTS_FILE)) == 2 * 2 * 10
