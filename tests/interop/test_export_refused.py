"""What `megavideo export` refuses: one message that names the setting or file, and nothing half-written."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megavideo.checkpoint.manifest import Header, read_manifest
from megavideo.checkpoint.read import find_checkpoint
from megavideo.checkpoint.write import write_checkpoint
from megavideo.cli.main import main
from megavideo.config.dump import to_yaml
from megavideo.errors import RETRY_STATUS
from megavideo.interop.export.verify import Verified
from megavideo.testing.saved_run import alone, fragments_of, random_model
from megavideo.testing.spoil import spoil_values
from tests.interop.runs import export, wan_run, with_wan_encoders


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    wan_run(folder)
    return folder / "run"


def refused(words: list[str], capfd: pytest.CaptureFixture[str], out: Path, status: int = 2) -> str:
    """The one line that is told; nothing new lies where `out` would."""
    before = sorted(out.parent.iterdir())
    capfd.readouterr()
    assert main(["export", f"out={out}", *words]) == status
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "Remedy: " in told[0]
    assert sorted(out.parent.iterdir()) == before
    return told[0]


UNKNOWN_TO_WAN = [
    ("model__modulation", "adaln_zero", "model.modulation='adaln_zero'"),
    ("model__place_embedding", "true", "model.place_embedding=True"),
    ("model__fps_conditioning", "true", "model.fps_conditioning=True"),
    ("model__qk_norm", "false", "model.qk_norm=False"),
]


@pytest.mark.parametrize(("setting", "value", "named"), UNKNOWN_TO_WAN)
def test_a_network_that_wans_is_not(
    setting: str, value: str, named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wan_run(tmp_path, **{setting: value})
    told = refused([f"ckpt={tmp_path / 'run'}", "format=single"], capfd, tmp_path / "out.safetensors")
    assert named in told and "no format= can express this run" in told and "checkpoint reshard" in told


NO_PIPELINE = [
    ({"diffusion": "ddpm"}, [], "diffusion.objective='ddpm'"),
    ({"diffusion__shift_by_size": "true"}, [], "diffusion.shift_by_size=True"),
    ({"diffusion__conditions__image_to_video": 0.5, "model__patch": "[1,1,1]"}, [], "model.patch=(1, 1, 1)"),
    ({"diffusion__conditions__image_to_video": 0.5, "model__given_channels": 10}, [], "model.given_channels=10"),
    ({}, [], "autoencoder.kind='pca'"),
    ({}, ["parts.vae=none"], "text_encoder.kind='bytes'"),
    ({}, ["parts.vae=none", "parts.text_encoder=none"], "text_encoder.kind='bytes'"),
]


@pytest.mark.parametrize(("settings", "words", "named"), NO_PIPELINE)
def test_a_run_that_no_pipeline_samples(
    settings: dict[str, object], words: list[str], named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wan_run(tmp_path, **settings)
    told = refused([f"ckpt={tmp_path / 'run'}", *words], capfd, tmp_path / "out")
    assert named in told and "format=transformer" in told
    export([f"ckpt={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "format=transformer", "verify=false"], capfd)


def test_what_is_named_instead_of_a_pipeline(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without encoders, or with a shift of one's own, such runs are pipelines."""
    words = ["parts.vae=none", "parts.text_encoder=none", "parts.tokenizer=none"]
    assert export([f"ckpt={run}", f"out={tmp_path / 'out'}", *words], capfd)["verify"]["fault"] is None
    wan_run(tmp_path / "sized", diffusion__shift_by_size="true")
    export([f"ckpt={tmp_path / 'sized' / 'run'}", f"out={tmp_path / 'two'}", "shift=2.5", *words], capfd)
    assert '"flow_shift": 2.5' in (tmp_path / "two" / "scheduler" / "scheduler_config.json").read_text()


def test_an_autoencoder_of_other_channels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wan_run(tmp_path, model__latent_channels=8)
    with_wan_encoders(tmp_path / "run", tmp_path / "weights")
    told = refused([f"ckpt={tmp_path / 'run'}"], capfd, tmp_path / "out")
    assert "latents of 4 channels, and the model of the run takes 8" in told


def test_weights_that_have_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wan_run(tmp_path)
    with_wan_encoders(tmp_path / "run", tmp_path / "weights")
    shutil.rmtree(tmp_path / "weights" / "text_encoder")
    assert "transformers_text.json" in refused([f"ckpt={tmp_path / 'run'}"], capfd, tmp_path / "out")


def test_a_place_that_is_taken(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [f"ckpt={run}", "format=transformer"]
    (tmp_path / "out").mkdir()
    assert "is there already" in refused(words, capfd, tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is there already" in refused(words, capfd, tmp_path / "link")


def cut(checkpoint: Path) -> None:
    path = next(checkpoint.glob("fragments_*"))
    path.write_bytes(path.read_bytes()[:-100])


def not_finite(checkpoint: Path) -> None:
    spoil_values(checkpoint, "ema", "head.proj.weight")


def of_more_layers(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    config = manifest.config.replace("layers: 2\n", "layers: 3\n")
    (checkpoint / "manifest.json").write_text(dataclasses.replace(manifest, config=config).to_json())


def of_fewer_layers(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    config = manifest.config.replace("layers: 2\n", "layers: 1\n")
    (checkpoint / "manifest.json").write_text(dataclasses.replace(manifest, config=config).to_json())


def wrapped_twice(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    shapes = manifest.shapes | {"module.head.proj.bias": (0,)}
    (checkpoint / "manifest.json").write_text(dataclasses.replace(manifest, shapes=shapes).to_json())


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut, "fragments_00000.safetensors: damaged"),
        (not_finite, "ema of 'head.proj.weight' (1 of "),
        (of_more_layers, "it lacks 'blocks.2."),
        (of_fewer_layers, "it has 'blocks.1."),
        (wrapped_twice, "are both the model's 'head.proj.bias'"),
    ],
)
def test_a_checkpoint_that_is_not_whole(
    damage: Callable[[Path], None], part: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    damage(find_checkpoint(tmp_path / "run"))
    assert part in refused([f"ckpt={tmp_path / 'run'}", "format=transformer"], capfd, tmp_path / "out")


def test_weights_that_were_not_averaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = wan_run(tmp_path)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    model = random_model(config.model, 0)
    fragments = fragments_of(model, model)
    for fragment in fragments:
        del fragment.states["ema"]
    with alone():
        write_checkpoint(tmp_path / "run" / "checkpoints", Header(1, "dp1", to_yaml(config)), fragments, keep=1)
    words = [f"ckpt={tmp_path / 'run'}", "format=transformer"]
    assert "Remedy: take weights=raw" in refused(words, capfd, tmp_path / "out")
    export([*words, f"out={tmp_path / 'out'}", "weights=raw"], capfd)


@pytest.mark.parametrize("told_in_advance", [True, False])
def test_a_disk_without_room(
    told_in_advance: bool, small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Found before anything is written, or where others take the room meanwhile."""
    wan_run(tmp_path, model__width=192, model__ffn=1024, model__layers=5)
    if not told_in_advance:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr("megavideo.interop.export.output.shutil.disk_usage", lambda path: usage)
    words = [f"ckpt={tmp_path / 'run'}", "format=transformer", "shard_gb=0.001"]
    told = refused(words, capfd, small_disk / "out")
    assert ("are free there" if told_in_advance else "No space left on device") in told
    assert os.listdir(small_disk) == []


def test_what_a_killed_export_left_goes(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    left = tmp_path / ".writing-out" / "half.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    export([f"ckpt={run}", f"out={tmp_path / 'out'}", "format=transformer"], capfd)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_numbers_end_with_one(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is printed all the same."""
    words = ["export", f"ckpt={run}", "format=transformer"]
    monkeypatch.setattr("megavideo.interop.export.tensor_files.Group.written", lambda group, value: value * 1.001)
    assert main([*words, f"out={tmp_path / 'out'}"]) == 1
    assert "relative_error=" in capfd.readouterr().out
    monkeypatch.setattr("megavideo.interop.export.run.verify", lambda *_: Verified(1e-6, 1e-5, None))
    assert main([*words, f"out={tmp_path / 'two'}"]) == 0
    monkeypatch.setattr("megavideo.interop.export.run.verify", lambda *_: Verified(float("nan"), 1e-5, None))
    assert main([*words, f"out={tmp_path / 'three'}"]) == 1


def test_a_place_where_another_exports(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from megavideo.data.storage.owners import Claim, owning

    with owning(tmp_path / "out", Claim("export", "out= another place", is_file=True)):
        told = refused([f"ckpt={run}", "format=transformer"], capfd, tmp_path / "out", RETRY_STATUS)
    assert "in use by `megavideo export`" in told
