"""Windows and crops of ingested clips, as they are read for encoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megavideo.config.schema.prepare import AutoencoderConfig, EncodeRun, IngestRun, TextEncoderConfig
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.ingest import ingest, open_clip_file, read_clip_list
from megavideo.data.storage.open import open_storage
from megavideo.encoders.encode.clips import ClipLimits, ClipSource, fitting_videos, plan_clips, read_clip
from megavideo.encoders.encode.plan_work import WorkOrder, plan_work
from megavideo.encoders.encode.run import encode
from megavideo.encoders.encode.unit import UnitEncoder, UnitJob
from megavideo.encoders.folder import Encoders
from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.encoders.video.pca import PcaAutoencoder, fit_pca
from megavideo.errors import DataError
from tests.data.clip_files import write_captions, write_clip
from tests.data.test_ingest_cuts import texture

BAR = 16
SHOTS = (40, 21, 60)
LIMITS = ClipLimits(area=64 * 96, max_frames=17, patch=(1, 2, 2))


@pytest.fixture
def film(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Three shots between bars above and below."""
    src = tmp_path / "src"
    src.mkdir()
    shots = np.concatenate([texture(seed, count, 70, 102) for seed, count in enumerate(SHOTS)])
    frames = np.pad(shots, ((0, 0), (BAR, BAR), (0, 0), (0, 0)))
    write_clip(src / "film.mp4", frames, fps=25)
    write_captions(src, {"film.mp4": "three shots"})
    ingest(IngestRun(src=str(src), out=str(tmp_path / "list")))
    return tmp_path / "list", frames


def test_each_clip_is_its_window_without_bars(film: tuple[Path, np.ndarray]) -> None:
    folder, frames = film
    planned, dropped = plan_clips(read_clip_list(folder), LIMITS, 4, 8)
    assert [clip.row.start for clip in planned] == [0, 40, 61] and not dropped
    assert [clip.row.anchor is not None for clip in planned] == [True] * 3
    for clip in planned:
        pixels = read_clip(clip).numpy()
        assert pixels.shape == (17, clip.size.height, clip.size.width, 3)
        first = clip.row.start + clip.window.start
        assert clip.row.start <= first and first + 17 <= clip.row.start + clip.row.frames
        # With the bars the clip would be square.
        assert clip.pixels == (17, 64, 96)
        # No line of a bar is left.
        assert pixels.mean(axis=(0, 2, 3)).min() > 80
        left, top, right, bottom = (round(edge) for edge in clip.size.box)
        assert clip.row.crop is not None
        x, y = clip.row.crop[0] + left, clip.row.crop[1] + top
        truth = frames[first : first + 17, y : y + bottom - top, x : x + right - left].astype(float)
        assert abs(pixels.mean(axis=(1, 2)) - truth.mean(axis=(1, 2))).max() < 4.0


def test_encode_makes_a_sample_of_each(film: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = film
    report = encode(
        EncodeRun(
            src=str(folder), out=str(tmp_path / "out"), area=LIMITS.area, max_frames=17,
            autoencoder=AutoencoderConfig(kind="pca", channels=16, fit_clips=3),
            text_encoder=TextEncoderConfig(kind="bytes", dim=64, max_tokens=64),
        )
    )  # fmt: skip
    assert report.num_samples == 3 and not report.dropped
    samples = open_dataset(str(tmp_path / "out")).samples
    assert {sample.sample_id for sample in samples} == {row.clip_id for row in read_clip_list(folder).rows}
    assert {(sample.latent.t, sample.latent.h, sample.latent.w) for sample in samples} == {(5, 8, 12)}


def test_a_file_that_shrank_is_told(film: tuple[Path, np.ndarray]) -> None:
    folder, frames = film
    clips = read_clip_list(folder)
    write_clip(clips.root / "film.mp4", frames[:, BAR : BAR + 48, :64], fps=25)
    planned, _ = plan_clips(clips, LIMITS, 4, 8)
    with pytest.raises(DataError, match=r"film\.mp4: has changed since it was ingested.*run ingest again"):
        read_clip(planned[0])
    unmarked = replace(planned[0], row=replace(planned[0].row, content=""))
    with pytest.raises(DataError, match=r"does not hold the crop.*has changed since it was ingested"):
        read_clip(unmarked)


class _SmallMachine(PcaAutoencoder):
    """An autoencoder that meets what a GPU says when its memory is full."""

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 1 TiB")


def test_a_clip_too_large_for_the_gpu_is_told(film: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    listed = open_clip_file(film[0])
    source = ClipSource(listed.root, LIMITS, 4, 8)
    storage = open_storage(str(tmp_path / "out"))
    fitted = fit_pca(4, 1, lambda count: fitting_videos(source.fitting(row for _, row in listed.lines()), count))
    encoders = Encoders(_SmallMachine(fitted.first, fitted.group), BytesTextEncoder(16, 8))
    (plan,) = plan_work(storage, WorkOrder(listed, 8, 0, frozenset(), tmp_path)).plans
    (unit,) = plan.units()
    with pytest.raises(DataError, match=r"film\.mp4: 17 frames of \d+x\d+ do not fit.*autoencoder\.tile=256"):
        UnitEncoder(storage, "key", encoders, source, tmp_path, 1 << 20).encode(UnitJob(unit))
    assert not list((tmp_path / "out").rglob("*.mds"))
