"""Image-to-video models of Wan 2.1's form, told a CLIP's embedding of the first frame: diffusers' video and ours."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanImageToVideoPipeline

from megavideo.checkpoint.read import find_checkpoint
from megavideo.config.given import GivenFiles
from megavideo.config.load import load
from megavideo.config.schema.export import ExportRun
from megavideo.config.schema.import_ import ImportRun
from megavideo.errors import CheckpointError, ConfigError, DataError
from megavideo.generate.loaded_run import load_run
from megavideo.generate.sampler import GivenChannels
from megavideo.interop.export.run import export
from megavideo.interop.import_run import import_weights
from tests.encoders.tiny_models import make_clip_vision
from tests.interop.runs import wan_run, with_wan_encoders
from tests.interop.test_export_pipeline import psnr
from tests.interop.test_image_pipeline import CPU, Case, only_first, ours, picture, theirs, told
from tests.interop.wan_files import SMALL, save_pipeline

pytest.importorskip("accelerate", reason="diffusers loads Wan pipelines only with the package accelerate")
WIDTH = 20


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case]:
    folder = tmp_path_factory.mktemp("wan21")
    config = dataclasses.replace(SMALL, given_channels=SMALL.latent_channels + 4, image_dim=WIDTH)
    pipeline = save_pipeline(folder, config, WanImageToVideoPipeline)
    import_weights(ImportRun(src=str(folder / "pipeline"), out=str(folder / "run")))
    run = load_run(folder / "run", weights="raw", dtype=torch.float32, device=CPU)
    files = GivenFiles(picture(folder / "first.png", 0.0), picture(folder / "last.png", 2.0))
    return folder, Case(run, pipeline, files)


def test_an_imported_pipeline_gives_its_video(imported: tuple[Path, Case]) -> None:
    _, case = imported
    files = only_first(case)
    given, expected = told(case, files), theirs(case, files)
    assert given.image is not None and given.image.shape == (5, WIDTH)
    video = ours(case, given)
    # the comparison itself: the embedding of another image, and none
    other = told(case, GivenFiles(image=case.files.last_image)).image
    turned, without = (ours(case, GivenChannels(given.channels, image)) for image in (other, None))
    found = [psnr(one, expected) for one in (video, turned, without)]
    print(f"psnr {found[0]:.1f} dB, another embedding {found[1]:.1f} dB, none {found[2]:.1f} dB")
    assert video.shape == expected.shape and expected.std() > 5
    assert found[0] >= 40 and max(found[1:]) < found[0] - 6


def test_what_a_run_cannot_tell_is_refused(imported: tuple[Path, Case], tmp_path: Path) -> None:
    folder, case = imported
    alone = dataclasses.replace(case.run.encoders, image_encoder=None)
    with pytest.raises(ConfigError, match=r"^image: .*keeps no image encoder, and its model has model\.image_dim=20"):
        told(dataclasses.replace(case, run=dataclasses.replace(case.run, encoders=alone)), only_first(case))
    with pytest.raises(ConfigError, match=r"^mode='interpolation': .*was never trained on it"):
        told(case, case.files)
    # weights that are others now
    shutil.copytree(folder / "run", tmp_path / "run")
    place = tmp_path / "run" / "encoders" / "clip_vision.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"fingerprint": "spread:other"}))
    with pytest.raises(DataError, match=r"clip_vision\.json: .*holds other weights"):
        load_run(tmp_path / "run", weights="raw", dtype=torch.float32, device=CPU)
    # and an encoder of another width than the transformer's
    shutil.copytree(folder / "pipeline", tmp_path / "pipeline")
    shutil.rmtree(tmp_path / "pipeline" / "image_encoder")
    make_clip_vision(tmp_path / "pipeline", 16)
    with pytest.raises(CheckpointError, match="image_encoder has 16 channels, and the transformer 20"):
        import_weights(ImportRun(src=str(tmp_path / "pipeline"), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_an_exported_pipeline_gives_our_video(tmp_path: Path) -> None:
    wan_run(
        tmp_path, model__given_channels=8, model__image_dim=WIDTH, diffusion__shift=3.0,
        diffusion__conditions__text=0.0, diffusion__conditions__image_to_video=1.0,
    )  # fmt: skip
    with_wan_encoders(tmp_path / "run", tmp_path / "weights", strong=True, image_dim=WIDTH)
    words = [f"ckpt={tmp_path / 'run'}", f"out={tmp_path / 'out'}"]
    report = export(load(ExportRun, "export", words), find_checkpoint(tmp_path / "run"))
    assert report.verify is not None and report.verify.passed, report.verify
    run = load_run(tmp_path / "run", weights="ema", dtype=torch.float32, device=CPU)
    pipeline = WanImageToVideoPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert pipeline.transformer.config.image_dim == WIDTH and pipeline.image_encoder is not None
    case = Case(run, pipeline, GivenFiles(picture(tmp_path / "first.png", 0.0)))
    video, expected = ours(case, told(case, case.files)), theirs(case, case.files)
    print(f"psnr {psnr(video, expected):.1f} dB")
    assert video.std() > 5 and psnr(video, expected) >= 40
