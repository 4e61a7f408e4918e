from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megavideo.config.schema.prepare import AutoencoderConfig, EncodeRun, IngestRun, TextEncoderConfig
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.ingest import ingest
from megavideo.data.storage.open import download_all, open_storage
from megavideo.encoders.encode import run as encode_module
from megavideo.encoders.encode.run import encode
from megavideo.encoders.folder import load_encoders, same_encoders
from megavideo.errors import ConfigError, DataError
from tests.data.clip_files import moving_square, turn_header, write_captions, write_clip
from tests.encoders.encode_cases import tree
from tests.encoders.tiny_models import make_text, make_wan

PCA = AutoencoderConfig(kind="pca", channels=16, fit_clips=8)
BYTES = TextEncoderConfig(kind="bytes", dim=64, max_tokens=6)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "a.mp4", moving_square(21, 96, 128))
    write_clip(folder / "b.mp4", moving_square(7, 64, 64, (30, 60, 220)), fps=25)
    turn_header(write_clip(folder / "c.mp4", moving_square(5, 48, 96)), 1)
    Image.fromarray(moving_square(1, 64, 80)[0]).save(folder / "d.png")
    write_clip(folder / "tiny.mp4", moving_square(5, 8, 8))
    captions = {name: f"clip {name[0]}" for name in ("a.mp4", "b.mp4", "c.mp4", "d.png", "tiny.mp4")}
    write_captions(folder, captions | {"a.mp4": "a red square that moves to the right"})
    return folder


def run(src: Path, out: Path | str, **settings: object) -> EncodeRun:
    cfg = EncodeRun(src=str(src), out=str(out), area=8192, max_frames=9, autoencoder=PCA, text_encoder=BYTES)
    return dataclasses.replace(cfg, **settings)


def rows(folder: Path) -> list[dict[str, object]]:
    from streaming import StreamingDataset

    stream = StreamingDataset(local=str(folder), shuffle=False, batch_size=1, validate_hash="xxh64")
    return [stream[index] for index in range(stream.num_samples)]


def test_raw_clips(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = encode(run(clips, out))
    json.dumps(dataclasses.asdict(report))
    assert (report.num_samples, report.num_images, report.captions_cut, report.longest_text) == (4, 1, 1, 6)
    assert [clip.file for clip in report.dropped] == ["tiny.mp4"]
    assert "8x8 pixels" in report.dropped[0].reason
    assert report.psnr_db > 20 and report.psnr_clips == 4
    dataset = open_dataset(str(out))
    assert dataset.info.dropped == report.dropped
    shapes = {s.source: (s.latent.t, s.latent.h, s.latent.w, s.fps) for s in dataset.samples}
    assert shapes == {
        "a.mp4": (3, 10, 12, 8.0),
        "b.mp4": (2, 8, 8, 25.0),
        "c.mp4": (2, 12, 6, 8.0),
        "d.png": (1, 8, 10, 1.0),
    }
    assert report.num_tokens == sum(s.latent.num_tokens // 4 for s in dataset.samples)
    manifest = [json.loads(line) for line in (out / "manifest_v1.jsonl").read_text().splitlines()]
    assert {row["source"]: row["pixels"] for row in manifest} == {
        "a.mp4": [9, 80, 96],
        "b.mp4": [5, 64, 64],
        "c.mp4": [5, 96, 48],
        "d.png": [1, 64, 80],
    }
    assert all(row["scores"].keys() >= {"sharpness"} and row["unit"].startswith("00000-000000-") for row in manifest)
    encoders = load_encoders(out / "encoders")
    for sample, row in zip(dataset.samples, rows(out), strict=True):
        assert (row["sample_id"], row["caption"], row["fps"]) == (sample.sample_id, sample.caption, sample.fps)
        assert row["latent"].shape == (16, sample.latent.t, sample.latent.h, sample.latent.w)
        assert row["text"].shape == (sample.text_tokens, 64)
        text = encoders.text_encoder.encode([sample.caption])[0]
        assert np.array_equal(row["text"], text.numpy().astype(np.float16))
    # The window is centred, and the latent decodes to it.
    (index,) = (sample.index for sample in dataset.samples if sample.source == "b.mp4")
    restored = encoders.autoencoder.decode(torch.tensor(rows(out)[index]["latent"]).float())
    frames = ((restored + 1) * 127.5).permute(1, 2, 3, 0).numpy()
    assert np.abs(frames - moving_square(7, 64, 64, (30, 60, 220))[1:6]).mean() < 8


def test_same_input_gives_same_bytes(clips: Path, tmp_path: Path) -> None:
    ingest(IngestRun(src=str(clips), out=str(tmp_path / "list")))
    for name in ("one", "two"):
        report = encode(run(tmp_path / "list", tmp_path / name, shard_bytes=4096))
        assert report.num_bytes > 0
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len([name for name in names if name.suffix == ".mds"]) > 1
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_weights_may_be_moved(clips: Path, tmp_path: Path) -> None:
    """What is added to a dataset is encoded with the same weights, wherever they lie now."""
    out, old, new = tmp_path / "out", tmp_path / "old", tmp_path / "new"
    make_wan(old / "vae")
    make_text(old / "text")

    def settings(place: Path, src: Path) -> EncodeRun:
        autoencoder = AutoencoderConfig(kind="wan", path=str(place / "vae"))
        text_encoder = TextEncoderConfig(kind="transformers", path=str(place / "text"), max_tokens=6)
        return run(src, out, area=1024, max_frames=5, autoencoder=autoencoder, text_encoder=text_encoder)

    ingest(IngestRun(src=str(clips), out=str(tmp_path / "list")))
    everything = (tmp_path / "list" / "clips.jsonl").read_text().splitlines()
    (tmp_path / "list" / "clips.jsonl").write_text(everything[0])
    encode(settings(old, tmp_path / "list"))
    kept = shutil.copytree(out / "encoders", tmp_path / "kept")
    old.rename(new)
    (tmp_path / "list" / "clips.jsonl").write_text("\n".join(everything))
    assert encode(settings(new, tmp_path / "list")).version == 2
    assert tree(out / "encoders") == tree(kept)
    description = kept / "wan.json"
    description.write_text(description.read_text().replace(str(old), str(new)))
    assert same_encoders(open_storage(str(out)), "encoders/", kept)
    description.write_text(description.read_text().replace('"fp32"', '"bf16"'))
    assert not same_encoders(open_storage(str(out)), "encoders/", kept)
    make_wan(new / "vae", base_dim=8)
    with pytest.raises(ConfigError, match=r"autoencoder\.path=.*other weights"):
        encode(settings(new, tmp_path / "list"))


def test_a_full_disk_is_told_and_made_up_for(clips: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the end of the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ingest(IngestRun(src=str(clips), out=str(tmp_path / "list")))
    # small weights, and shards that are larger
    small, wide = dataclasses.replace(PCA, channels=1), dataclasses.replace(BYTES, dim=2048)
    cfg = run(tmp_path / "list", tmp_path / "out", autoencoder=small, text_encoder=wide)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"shards: cannot be written \(File too large\)"):
            encode(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert encode(cfg).num_samples == 4


def test_existing_dataset_is_kept(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    encode(run(clips, out))
    before = tree(out)
    with pytest.raises(ConfigError, match=r"max_frames=1.*begun with 9.*overwrite=true"):
        encode(run(clips, out, max_frames=1))
    with pytest.raises(ConfigError, match=r"autoencoder\.channels=8"):
        encode(run(clips, out, autoencoder=dataclasses.replace(PCA, channels=8)))
    # remedies as the command line takes them
    with pytest.raises(ConfigError, match=r"give patch=\[1,2,2\] to add"):
        encode(run(clips, out, patch=(1, 1, 1)))
    with pytest.raises(ConfigError, match="give autoencoder=pca to add"):
        encode(run(clips, out, autoencoder=dataclasses.replace(PCA, kind="wan")))
    # Faults that show before the first write leave the old dataset as it was.
    with pytest.raises(DataError, match="no such file"):
        encode(run(tmp_path / "gone", out, overwrite=True))
    with pytest.raises(DataError, match="no clip is left"):
        encode(run(clips, out, overwrite=True, area=256, patch=(1, 8, 8)))
    with pytest.raises(ConfigError, match=r"autoencoder\.channels"):
        encode(run(clips, out, overwrite=True, autoencoder=dataclasses.replace(PCA, channels=500)))
    assert tree(out) == before
    encode(run(clips, out, overwrite=True, max_frames=1))
    assert {sample.latent.t for sample in open_dataset(str(out)).samples} == {1}
    # One in the middle of writing leaves none that opens.
    monkeypatch.setattr(encode_module, "publish_units", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode(run(clips, out, overwrite=True))
    with pytest.raises(DataError, match="did not finish"):
        open_dataset(str(out))


def test_a_clip_that_went_bad_is_dropped(clips: Path, tmp_path: Path) -> None:
    ingest(IngestRun(src=str(clips), out=str(tmp_path / "list")))
    (clips / "a.mp4").unlink()
    (clips / "b.mp4").write_bytes((clips / "b.mp4").read_bytes()[:200])
    report = encode(run(tmp_path / "list", tmp_path / "out"))
    assert [clip.file for clip in report.dropped][:1] == ["tiny.mp4"]
    assert {clip.file for clip in report.dropped} == {"tiny.mp4", "a.mp4", "b.mp4"}
    assert [sample.index for sample in open_dataset(str(tmp_path / "out")).samples] == [0, 1]


def test_patch_in_time(clips: Path, tmp_path: Path) -> None:
    report = encode(run(clips, tmp_path / "out", patch=(2, 2, 2)))
    assert {sample.latent.t for sample in open_dataset(str(tmp_path / "out")).samples} == {2}
    assert "d.png" in {clip.file for clip in report.dropped}


def test_pretrained_encoders(clips: Path, tmp_path: Path) -> None:
    cfg = run(
        clips,
        tmp_path / "out",
        autoencoder=AutoencoderConfig(kind="wan", path=str(make_wan(tmp_path / "wan")), precision="bf16"),
        text_encoder=TextEncoderConfig(kind="transformers", path=str(make_text(tmp_path / "text")), max_tokens=16),
    )
    encode(cfg)
    dataset = open_dataset(str(tmp_path / "out"))
    assert (dataset.info.latent_channels, dataset.info.text_dim) == (8, 32)
    encoders = load_encoders(tmp_path / "out" / "encoders")
    (index,) = (sample.index for sample in dataset.samples if sample.source == "a.mp4")
    video = encoders.autoencoder.decode(torch.tensor(rows(tmp_path / "out")[index]["latent"]))
    assert video.shape == (3, 9, 80, 96)


def test_object_store(clips: Path, tmp_path: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/encode"
    encode(run(clips, uri, shard_bytes=4096))
    encode(run(clips, uri, overwrite=True, max_frames=5))
    dataset = open_dataset(uri)
    assert len(dataset.samples) == 4
    download_all(dataset.storage, "encoders/", tmp_path / "encoders")
    assert load_encoders(tmp_path / "encoders").autoencoder.latent_channels == 16
    assert len([name for name in dataset.storage.list() if name.endswith(".mds")]) == 1


def test_real_clips(real_clips: Path, tmp_path: Path) -> None:
    report = encode(run(real_clips, tmp_path / "out", area=4096, max_frames=5))
    assert (report.num_samples >= 14, report.dropped) == (True, ())
    assert len(open_dataset(str(tmp_path / "out")).samples) == report.num_samples
