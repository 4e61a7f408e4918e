"""Encode of clips that lie in a bucket: the dataset of the folder with the same files."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from megavideo.config.schema.clip_store import ClipStoreConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.ingest import ingest, open_clip_file
from megavideo.encoders.encode import clips as clips_module
from megavideo.encoders.encode.run import encode
from megavideo.errors import StoreUnreachable
from tests.data.clip_files import moving_square, write_clip
from tests.data.fault_proxy import FaultProxy
from tests.data.store_clips import make_clips, put, upload
from tests.encoders.test_encode import rows, run


@pytest.fixture
def places(tmp_path: Path, s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str, Path]:
    """A folder of clips, its copy in a bucket, and the list of that, without charts."""
    monkeypatch.setattr("megavideo.data.ingest.page.draw_charts", lambda charts: b"")
    folder = make_clips(tmp_path / "clips")
    bucket, listed = upload(folder, f"{s3_prefix}/clips"), tmp_path / "listed"
    ingest(IngestRun(src=bucket, out=str(listed)))
    return folder, bucket, listed


def contents(out: Path) -> list[list[object]]:
    """All samples, whatever their order."""
    found = (
        [name, bytes(value) if hasattr(value, "tobytes") else value] for row in rows(out) for name, value in row.items()
    )
    return sorted(map(repr, found))  # type: ignore[arg-type]


def test_a_list_of_a_bucket(places: tuple[Path, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips at a time lie on the disk at most: those that are read ahead."""
    folder, _, listed = places
    cache, most = tmp_path / "cache", []
    check = clips_module._check_file

    def watched(path: Path, clip: clips_module.PlannedClip) -> None:
        most.append(len([copy for copy in cache.rglob("*") if copy.suffix in (".mp4", ".png")]))
        check(path, clip)

    monkeypatch.setattr(clips_module, "_check_file", watched)
    store = ClipStoreConfig(cache=str(cache))
    stored = encode(run(listed, tmp_path / "stored", store=store))
    assert len(most) >= 5 and max(most) <= 2 and not any(path.is_file() for path in cache.rglob("*"))
    ingest(IngestRun(src=str(folder), out=str(tmp_path / "local list")))
    local = encode(run(tmp_path / "local list", tmp_path / "local"))
    assert stored.num_samples == local.num_samples == 5 and not stored.dropped
    samples = [{s.sample_id: s for s in open_dataset(str(tmp_path / name)).samples} for name in ("stored", "local")]
    assert samples[0] == samples[1]
    assert contents(tmp_path / "stored") == contents(tmp_path / "local")


def test_another_content_than_was_ingested_is_dropped(places: tuple[Path, str, Path], tmp_path: Path) -> None:
    _, bucket, listed = places
    write_clip(tmp_path / "new.mp4", moving_square(12, 64, 64, (0, 0, 200)))
    put(bucket, "a.mp4", (tmp_path / "new.mp4").read_bytes())
    put(bucket, "b.mp4", bytes(100_000))
    store = ClipStoreConfig(max_bytes=50_000)
    report = encode(run(listed, tmp_path / "out", store=store))
    reasons = {clip.file: clip.reason for clip in report.dropped}
    assert reasons["a.mp4"] == f"{bucket}/a.mp4: has changed since it was ingested. Remedy: run ingest again"
    assert "at most store.max_bytes=50000" in reasons["b.mp4"] and len(reasons) == 2
    assert report.num_samples == 3


@pytest.mark.slow
def test_a_store_that_goes_away(
    places: tuple[Path, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No clip is dropped for it: the same command goes on."""
    _, _, listed = places
    proxy = FaultProxy(os.environ["S3_ENDPOINT_URL"], ".mp4")
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)
    cfg = run(listed, tmp_path / "out", store=ClipStoreConfig(retry_seconds=0.3), unit_clips=2)
    encode(cfg)
    whole = contents(tmp_path / "out")
    proxy.fault = lambda path, count: "503" if path == "d.mp4" or count > 1 else None
    again = dataclasses.replace(cfg, out=str(tmp_path / "again"))
    proxy.gets.clear()
    with pytest.raises(StoreUnreachable):
        encode(again)
    proxy.fault = lambda path, count: None
    assert encode(again).num_samples == 5
    assert contents(tmp_path / "again") == whole
    proxy.stop()


@pytest.mark.slow
def test_a_bucket_of_raw_clips(places: tuple[Path, str, Path], tmp_path: Path) -> None:
    _, bucket, _ = places
    assert encode(run(bucket, tmp_path / "out")).num_samples == 5  # type: ignore[arg-type]
    assert open_clip_file(tmp_path / "out" / "ingest").place == bucket
    assert json.loads((tmp_path / "out" / "ingest" / "ingest.json").read_text())["root"] == bucket
