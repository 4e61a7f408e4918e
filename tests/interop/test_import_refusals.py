"""What cannot be imported: one message that names file or setting and remedy, and nothing is written."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megavideo.cli.main import main
from megavideo.config.dump import read_config
from megavideo.config.schema.import_ import ImportRun
from megavideo.config.schema.train import TrainRun
from megavideo.errors import CheckpointError, MegavideoError
from megavideo.interop.import_run import import_weights
from megavideo.interop.weights import to_wan
from tests.encoders.tiny_models import make_family, make_wan
from tests.interop.wan_files import SMALL, original, random_state, save, save_original_config, save_sharded, transformer

Tensors = dict[str, torch.Tensor]


def one_file(change: Callable[[Tensors], object]) -> Callable[[Path], Path]:
    """A file of the original names with something changed."""

    def make(folder: Path) -> Path:
        tensors = original()
        change(tensors)
        return save(folder / "wan.safetensors", tensors)

    return make


def cut_short(folder: Path) -> Path:
    path = save(folder / "wan.safetensors", original())
    path.write_bytes(path.read_bytes()[:-100])
    return path


def a_pickle(folder: Path) -> Path:
    path = folder / "wan.pth"
    path.write_bytes(pickle.dumps({"unpickled": 1}))
    return path


def folder_of_pickles(folder: Path) -> Path:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"unpickled": 1}))
    return folder


def other_pipeline(folder: Path) -> Path:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    return folder


def missing_shard(folder: Path) -> Path:
    save_sharded(folder, original())
    (folder / "model-00002.safetensors").unlink()
    return folder


def index_of_others(folder: Path) -> Path:
    save_sharded(folder, original())
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["head.head.bias"] = "model-00001.safetensors"
    told["weight_map"]["blocks.9.modulation"] = "model-00001.safetensors"
    index.write_text(json.dumps(told))
    return folder


def index_that_leaves(folder: Path) -> Path:
    told = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    return folder


def two_sets(folder: Path) -> Path:
    save(folder / "a.safetensors", original())
    save(folder / "b.safetensors", original())
    return folder


def config_of_more_layers(folder: Path) -> Path:
    save(folder / "wan.safetensors", original())
    save_original_config(folder, num_layers=40)
    return folder


def config_of_no_number(folder: Path) -> Path:
    save(folder / "wan.safetensors", original())
    save_original_config(folder, eps="small")
    return folder


def config_of_other_parts(folder: Path) -> Path:
    transformer().save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"pos_embed_seq_len": 514}))
    return folder


def one_scaled(tensors: Tensors) -> None:
    tensors["blocks.0.ffn.0.scale_weight"] = torch.ones(1)


def in_fp8(tensors: Tensors) -> None:
    tensors.update({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items() if tensor.dim() == 2})


def as_matrix(tensors: Tensors) -> None:
    tensors["patch_embedding.weight"] = tensors["patch_embedding.weight"].flatten(1)


def emptied(tensors: Tensors) -> None:
    tensors.update({name: torch.empty(0) for name in list(tensors) if "ffn" in name})


def not_finite(tensors: Tensors) -> None:
    tensors["blocks.1.ffn.0.weight"][3, 5] = torch.nan


def autoencoder(folder: Path) -> Path:
    return make_wan(folder / "vae")


def cogvideox(folder: Path) -> Path:
    return make_family(folder / "vae", "cogvideox")


def unet(folder: Path) -> Path:
    return save(folder / "unet.safetensors", {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(2, 2, 3, 3)})


def adapter(folder: Path) -> Path:
    return save(folder / "lora.safetensors", {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 48)})


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (
        one_file(lambda t: t.pop("blocks.1.cross_attn.k.bias")),
        "missing, 1 tensor: 'blocks.1.cross_attn.k.bias'",
    ),
    "unexpected": (
        one_file(lambda t: t.update({"img_emb.others": torch.zeros(1, 4)})),
        "unexpected, 1 tensor: 'img_emb.ot",
    ),
    "first and last frame": (
        one_file(lambda t: t.update({"img_emb.emb_pos": torch.zeros(1, 4)})),
        "has 'img_emb.emb_pos', which only Wan 2.1's models of a first and a last frame (FLF2V) have",
    ),
    "misshapen": (
        one_file(lambda t: t.update({"blocks.0.ffn.2.bias": torch.zeros(47)})),
        "'blocks.0.ffn.2.bias' is (47,) in place of (48,)",
    ),
    "truncated": (cut_short, "wan.safetensors: cannot be read"),
    "pickle": (a_pickle, "wan.pth: a pickle"),
    "pickles": (folder_of_pickles, "pytorch_model.bin: a pickle"),
    "another pipeline": (other_pipeline, "it is of 'CogVideoXPipeline', and known are"),
    "shard missing": (missing_shard, "model-00002.safetensors, which it names, is not there"),
    "index wrong": (index_of_others, "not in the files in which the index has them: 1 tensor: 'blocks.9.modulation'"),
    "index outside": (index_that_leaves, "no relative name that stays inside"),
    "twice": (two_sets, "is there twice"),
    "config of other layers": (config_of_more_layers, "num_layers=40, and its tensors, or this version, want 2"),
    "config of no number": (config_of_no_number, "says 'small' for eps"),
    "config of other parts": (config_of_other_parts, "pos_embed_seq_len=514"),
    "scales": (one_file(one_scaled), "quantised weights (scales beside its tensors)"),
    "fp8": (one_file(in_fp8), "quantised weights (F8_E4M3)"),
    "matrix": (one_file(as_matrix), "a matrix does not tell whether channels or places in the patch come first"),
    "empty": (one_file(emptied), "tensors of size 0, as ZeRO-3 leaves them"),
    "not finite": (one_file(not_finite), "weight of 'blocks.1.ffn.up.weight' (1 of 3072 values)"),
    "autoencoder": (autoencoder, "it is of 'AutoencoderKLWan', and WanTransformer3DModel or WanModel is needed"),
    "cogvideox": (cogvideox, "it is of 'AutoencoderKLCogVideoX'"),
    "unet": (unet, "by its tensors, a UNet"),
    "adapter": (adapter, "a LoRA adapter"),
    "nothing": (lambda folder: folder, "no .safetensors file in it; known are"),
    "nowhere": (lambda folder: folder / "none", "no such file or folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_message_and_nothing_written(tmp_path: Path, name: str) -> None:
    make, part = REFUSED[name]
    (tmp_path / "src").mkdir()
    src = make(tmp_path / "src")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MegavideoError) as caught:
        import_weights(ImportRun(src=str(src), out=str(tmp_path / "out"), heads=None if src.is_dir() else 2))
    message = str(caught.value)
    assert part in message and "Remedy: " in message
    assert len(message.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "heads"),
        ({"heads": 7}, "heads"),
        ({"heads": 2, "expert": "low"}, "expert"),
        ({"heads": 2, "boundary": 0.5}, "boundary=0.5: has no effect"),
    ],
)
def test_settings_that_are_missing_or_without_effect(tmp_path: Path, settings: dict[str, object], field: str) -> None:
    src = save(tmp_path / "wan.safetensors", original())
    with pytest.raises(MegavideoError, match=f"^{field}"):
        import_weights(ImportRun(src=str(src), out=str(tmp_path / "out"), **settings))  # type: ignore[arg-type]


def test_a_pair_asks_for_the_expert(tmp_path: Path) -> None:
    for name in ("transformer", "transformer_2"):
        save(tmp_path / name / "model.safetensors", to_wan(random_state(SMALL), SMALL))
    with pytest.raises(MegavideoError, match=r"^expert: .*one is read at a time.*expert=high or expert=low"):
        import_weights(ImportRun(src=str(tmp_path), out=str(tmp_path / "out"), heads=2))
    with pytest.raises(MegavideoError, match=r"^boundary: .*boundary=0\.875 for Wan 2\.2's text to video"):
        import_weights(ImportRun(src=str(tmp_path), out=str(tmp_path / "out"), heads=2, expert="high"))
    assert not (tmp_path / "out").exists()


def test_heads_of_config_json_are_not_overridden(tmp_path: Path) -> None:
    save(tmp_path / "wan.safetensors", original())
    save_original_config(tmp_path)
    with pytest.raises(MegavideoError, match=r"^heads=4: config.json says 2"):
        import_weights(ImportRun(src=str(tmp_path), out=str(tmp_path / "out"), heads=4))


def test_models_that_cannot_run_are_refused_by_their_setting(tmp_path: Path) -> None:
    transformer(image_dim=20, added_kv_proj_dim=SMALL.width).save_pretrained(tmp_path / "wan")
    with pytest.raises(MegavideoError, match=r"^model\.image_dim=20: .*model\.given_channels=0 tells nothing"):
        import_weights(ImportRun(src=str(tmp_path / "wan"), out=str(tmp_path / "out")))
    added = {"image_dim": 20, "added_kv_proj_dim": SMALL.width, "pos_embed_seq_len": 10}
    transformer(in_channels=28, **added).save_pretrained(tmp_path / "both")
    with pytest.raises(MegavideoError, match=r"image_embedder\.pos_embed', which only .*\(FLF2V\)"):
        import_weights(ImportRun(src=str(tmp_path / "both"), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_told_the_first_frame_trains_on_that(tmp_path: Path) -> None:
    transformer(in_channels=28).save_pretrained(tmp_path / "wan")
    import_weights(ImportRun(src=str(tmp_path / "wan"), out=str(tmp_path / "out")))
    run = read_config(TrainRun, tmp_path / "out" / "config.yaml")
    assert (run.model.given_channels, run.model.latent_channels) == (20, 8)
    assert (run.diffusion.conditions.text, run.diffusion.conditions.image_to_video) == (0.0, 1.0)


def test_what_is_there_stays(tmp_path: Path) -> None:
    src = save(tmp_path / "wan.safetensors", original())
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="is there already"):
        import_weights(ImportRun(src=str(src), out=str(tmp_path / "out"), heads=2))


def test_a_full_disk_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    large = dataclasses.replace(SMALL, width=480, ffn=1200)
    src = save(tmp_path / "wan.safetensors", to_wan(random_state(large), large))
    with pytest.raises(CheckpointError, match="cannot be written"):
        import_weights(ImportRun(src=str(src), out=str(small_disk / "out"), heads=4))
    assert [path.name for path in small_disk.iterdir() if path.name != "lost+found"] == []


def test_the_verb_is_found_by_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["import", f"src={tmp_path / 'none'}", f"out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
