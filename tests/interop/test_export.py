"""What `megavideo export` writes: loaded by diffusers it is the run's model, to the bit in its weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from megavideo.checkpoint.manifest import Manifest, read_manifest
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.config.dump import read_config
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.data.storage.open import open_storage
from megavideo.interop.export.verify import Sample, load_theirs, our_output, their_output
from megavideo.interop.names import Dialect
from megavideo.interop.weights import to_wan
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from tests.interop.runs import export, wan_run, with_wan_encoders
from tools.convert_to_diffusers import main as convert_to_diffusers

SIZES = [(5, 8, 6), (3, 4, 12), (1, 10, 6)]
ACCELERATE = "diffusers loads a Wan transformer by from_pretrained only with the package accelerate"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    wan_run(folder)
    return folder / "run"


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def whole(run: Path, state: str = "ema") -> dict[str, torch.Tensor]:
    return CheckpointReader(find_checkpoint(run)).whole(state)


FORMATS = [("transformer", "diffusers", "out"), ("wan", "wan", "out"), ("single", "wan", "out.safetensors")]


@pytest.mark.parametrize(("kind", "dialect", "name"), FORMATS)
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_every_format_holds_the_weights_to_the_bit(
    kind: str, dialect: Dialect, name: str, weights: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sharded = [] if kind == "single" else ["shard_gb=1e-4"]
    out = tmp_path / name
    report = export([f"ckpt={run}", f"out={out}", f"format={kind}", f"weights={weights}", *sharded], capfd)
    config = micro_model(run)
    expected = to_wan(whole(run, "ema" if weights == "ema" else "weight"), config, dialect)
    found = tensors_in(out)
    assert found.keys() == expected.keys() and report["num_tensors"] == len(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert report["verify"]["relative_error"] < 1e-6 and report["verify"]["fault"] is None
    assert report["size_bytes"] == sum(file["size_bytes"] for file in report["files"])
    assert bool(report["notes"]) == (dialect == "wan")  # from_single_file needs config=
    assert len(list(out.glob("*-of-00004.safetensors"))) == (4 if sharded else 0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_checkpoint_is_read_once(
    dtype: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte is read twice, though wider numbers come first in a file."""
    counts, read = [], os.preadv

    def counted(*given: Any) -> int:
        counts.append(read(*given))
        return counts[-1]

    monkeypatch.setattr("megavideo.checkpoint.hashed_file.os.preadv", counted)
    words = [f"ckpt={run}", f"out={tmp_path / 'out'}", "format=transformer", "verify=false", f"dtype={dtype}"]
    export(words, capfd)
    assert sum(counts) == read_manifest(find_checkpoint(run)).size_bytes


def micro_model(run: Path) -> ModelConfig:
    return read_config(TrainRun, run / "config.yaml").model


@torch.no_grad()
def test_diffusers_gives_our_output_at_three_shapes(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export([f"ckpt={run}", f"out={tmp_path / 'out'}", "format=transformer", "verify=false"], capfd)
    config = micro_model(run)
    theirs = load_theirs([tmp_path / "out" / "diffusion_pytorch_model.safetensors"], "diffusers", config)
    ours = DiT(config, LocalLayers())
    ours.load_state_dict(whole(run))
    generator = torch.Generator().manual_seed(1)
    for number, size in enumerate(SIZES):
        latent = torch.randn(config.latent_channels, *size, generator=generator)
        text = torch.randn(4 + 3 * number, config.text_dim, generator=generator)
        sample = Sample(latent, text, 37.0 + 230.5 * number)
        expected = our_output(ours, sample)
        assert float((their_output(theirs, sample) - expected).norm() / expected.norm()) < 1e-5


def test_bf16_is_what_diffusers_itself_would_save(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Loaded and saved in bf16 diffusers keeps some tensors in fp32, and so does the export."""
    pytest.importorskip("accelerate", reason=ACCELERATE)
    for dtype in ("fp32", "bf16"):
        export([f"ckpt={run}", f"out={tmp_path / dtype}", "format=transformer", f"dtype={dtype}"], capfd)
    WanTransformer3DModel.from_pretrained(tmp_path / "fp32", torch_dtype=torch.bfloat16).save_pretrained(
        tmp_path / "theirs"
    )
    found, expected = tensors_in(tmp_path / "bf16"), tensors_in(tmp_path / "theirs")
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.bfloat16}
    loaded, info = WanTransformer3DModel.from_pretrained(
        tmp_path / "bf16", torch_dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values()) and loaded.dtype == torch.bfloat16


def test_one_file_loads_from_single_file(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With the config.json of the folder, as the note of the report says."""
    pytest.importorskip("accelerate", reason=ACCELERATE)
    report = export([f"ckpt={run}", f"out={tmp_path / 'one.safetensors'}", "format=single"], capfd)
    assert "from_single_file needs config= for this model of width 48" in report["notes"][0]
    export([f"ckpt={run}", f"out={tmp_path / 'folder'}", "format=transformer"], capfd)
    model = WanTransformer3DModel.from_single_file(
        str(tmp_path / "one.safetensors"), config=str(tmp_path / "folder"), local_files_only=True
    )
    assert all(torch.equal(value, whole_in_theirs(run)[name]) for name, value in model.state_dict().items())


def whole_in_theirs(run: Path) -> dict[str, torch.Tensor]:
    return to_wan(whole(run), micro_model(run))


def test_names_of_wrappers_are_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A model that was wrapped when it was saved, as by torch.compile or recomputation of whole blocks."""
    wan_run(tmp_path)
    run = tmp_path / "run"
    export([f"ckpt={run}", f"out={tmp_path / 'plain'}", "format=transformer"], capfd)
    (path,) = run.glob("checkpoints/*/manifest.json")
    wrapped = rename(read_manifest(path.parent), {"blocks.0.": "blocks.0._orig_mod.", "head.": "module.head.",
                                                  "blocks.1.": "blocks.1._checkpoint_wrapped_module."})  # fmt: skip
    path.write_text(wrapped)
    assert "_orig_mod" in wrapped and '"module.head.proj.weight"' in wrapped
    export([f"ckpt={run}", f"out={tmp_path / 'wrapped'}", "format=transformer"], capfd)
    assert contents(tmp_path / "wrapped") == contents(tmp_path / "plain")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rename(manifest: Manifest, prefixes: dict[str, str]) -> str:
    def other(name: str) -> str:
        for plain, wrapped in prefixes.items():
            if name.startswith(plain):
                return wrapped + name.removeprefix(plain)
        return name

    files = tuple(
        replace(file, fragments=tuple(replace(entry, name=other(entry.name)) for entry in file.fragments))
        for file in manifest.files
    )
    shapes = {other(name): shape for name, shape in manifest.shapes.items()}
    return replace(manifest, files=files, shapes=shapes).to_json()


def test_from_a_store_with_the_encoders_of_the_dataset(
    s3_bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The script that users of other trainers look for gives the same files."""
    wan_run(tmp_path, data__uri=tmp_path / "latents")
    run = tmp_path / "run"
    with_wan_encoders(run, tmp_path / "weights")
    export([f"ckpt={run}", f"out={tmp_path / 'here'}", "verify=false"], capfd)
    store = open_storage(f"{s3_bucket}/run")
    for path in find_checkpoint(run).iterdir():
        store.upload(path, f"{find_checkpoint(run).name}/{path.name}")
    (run / "encoders").rename(tmp_path / "encoders")
    (tmp_path / "latents").mkdir()
    (tmp_path / "encoders").rename(tmp_path / "latents" / "encoders")
    words = ["--checkpoint", f"{s3_bucket}/run", "--output-dir", str(tmp_path / "there"), "--verify"]
    assert convert_to_diffusers(words) == 0
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
