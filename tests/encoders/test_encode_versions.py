"""Many tasks make one dataset, and clips that come later make its next version."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.step_plan import PlanSettings
from megavideo.data.storage.local import LocalStorage
from megavideo.data.stream.shards import ShardReader
from megavideo.encoders.encode import manifest_file as manifest_module
from megavideo.encoders.encode import plan as plan_module
from megavideo.encoders.encode import pool as encode_pool
from megavideo.encoders.encode.manifest_file import ManifestFile
from megavideo.encoders.encode.run import encode
from megavideo.encoders.encode.staging import staging_folder
from megavideo.errors import ConfigError, DataError
from megavideo.testing.plan import plan_of
from megavideo.types import SampleInfo
from tests.data.test_dataset import write_format_1
from tests.encoders.encode_cases import PCA, samples_in_shards, settings, tree, write_film, write_list


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film"))


@pytest.fixture
def clips(film: Path, tmp_path: Path) -> Path:
    return write_list(tmp_path / "list", film, range(10))


def test_two_tasks_are_as_good_as_one(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(settings(clips, tmp_path / "one"))
    out = tmp_path / "two"
    first = encode(settings(clips, out, shard="0/2"))
    assert (first.version, first.num_samples, first.units, first.units_waiting) == (0, 0, 3, 1)
    with pytest.raises(DataError, match="did not finish"):
        open_dataset(str(out))
    for name, value in {"COUNT": "2", "ID": "5", "MIN": "3", "MAX": "5"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    second = encode(settings(clips, out))
    assert (second.version, second.num_samples, second.units_waiting) == (1, 10, 0)
    assert tree(out) == tree(tmp_path / "one")
    # A task that is started once more, or too late, finds nothing to do.
    assert dataclasses.replace(encode(settings(clips, out)), new_samples=10) == second
    assert tree(out) == tree(tmp_path / "one")


def test_clips_that_come_later_make_a_version(clips: Path, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(settings(clips, out))
    before, files = open_dataset(str(out)), tree(out)
    plans = [_steps(before.samples)]
    # The list may also lack what is there already.
    report = encode(settings(write_list(tmp_path / "more", film, range(6, 16)), out))
    assert (report.version, report.num_samples, report.new_samples, report.psnr_clips) == (2, 16, 6, 8)
    newest = open_dataset(str(out))
    assert newest.samples[:10] == before.samples
    assert sorted(sample.sample_id for sample in newest.samples[10:]) == [f"clip-{n:03d}" for n in range(10, 16)]
    assert sorted(samples_in_shards(out)) == sorted(sample.sample_id for sample in newest.samples)
    changed = {name for name, data in tree(out).items() if files.get(name, data) != data}
    assert changed == {"dataset.json", "index.json"}
    again = open_dataset(str(out), version=1)
    assert (again.info, again.samples) == (before.info, before.samples)
    assert _steps(again.samples) == plans[0] != _steps(newest.samples)
    readers = [ShardReader(dataset, None) for dataset in (again, newest)]
    assert readers[0].read(7).latent.equal(readers[1].read(7).latent)


def _steps(samples: Iterable[SampleInfo]) -> list[object]:
    limits = PackLimits(512, 128, 64, 1)
    plan = plan_of(samples, PlanSettings((1, 2, 2), limits, 2, 7))
    return [plan.step(step) for step in range(4)]


def test_captions_and_scores_reach_the_manifest(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = encode(settings(clips, out))
    rows = {row["sample_id"]: row for row in map(json.loads, (out / "manifest_v1.jsonl").open())}
    row = rows["clip-003"]
    assert row["scores"] == {"motion": 3.0} and row["pixels"] == [5, 64, 64] and row["source"] == "film.mp4"
    assert [(c["text"], c["weight"], c["tokens"]) for c in row["captions"]] == [
        ("a long text of clip 3", 3.0, 6),
        ("clip 3", 1.0, 3),
    ]
    assert (row["text_tokens"], row["caption"]) == (6, "a long text of clip 3")
    assert [len(rows[f"clip-{n:03d}"]["captions"]) for n in range(4)] == [2, 1, 1, 2]
    assert (report.longest_text, report.captions_cut) == (6, 10)
    dataset = open_dataset(str(out))
    (index,) = (sample.index for sample in dataset.samples if sample.sample_id == "clip-003")
    sample = ShardReader(dataset, None).read(index)
    assert ([len(text) for text in sample.texts], sample.weights) == ([6, 3], (3.0, 1.0))


def test_an_extended_list_keeps_what_is_done(clips: Path, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(settings(clips, out, shard="0/2"))
    units = tree(out / "units")
    report = encode(settings(write_list(tmp_path / "more", film, range(13)), out))
    assert (report.version, report.num_samples, report.units) == (1, 13, 4)
    assert {name: data for name, data in tree(out / "units").items() if name in units} == units
    assert sorted(samples_in_shards(out)) == [f"clip-{number:03d}" for number in range(13)]


def test_clips_that_are_listed_no_more_are_left_out_of_what_is_still_to_do(
    clips: Path, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode(settings(clips, out, shard="0/2"))
    done = {row["sample_id"] for path in (out / "units").iterdir() for row in json.loads(path.read_text())["rows"]}
    taken = sorted({f"clip-{number:03d}" for number in range(10)} - done)[0]
    report = encode(settings(write_list(tmp_path / "less", film, set(range(10)) - {0, 1, int(taken[-3:])}), out))
    lost = {clip.clip_id: clip.reason for clip in report.dropped}
    assert taken in lost and lost.keys() <= {"clip-000", "clip-001", taken} - done
    assert set(lost.values()) == {"is not in the list of clips any more"}
    assert report.num_samples + len(lost) == 10 and done <= set(samples_in_shards(out))


def test_shares_of_pages_of_several_units(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are very many units."""
    encode(settings(clips, tmp_path / "each"))
    monkeypatch.setattr(plan_module, "_MOST_PAGES", 2)
    first = encode(settings(clips, tmp_path / "out", shard="1/2"))
    assert (first.units, first.units_waiting) == (3, 2)
    assert encode(settings(clips, tmp_path / "out", shard="0/2")).num_samples == 10
    assert len(list((tmp_path / "out" / "plans" / "plan_00000").iterdir())) == 2
    samples = [[sample.sample_id for sample in open_dataset(str(tmp_path / n)).samples] for n in ("each", "out")]
    assert samples[0] == samples[1]


def test_a_damaged_manifest_is_not_added_to(clips: Path, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(settings(clips, out))
    path = out / "manifest_v1.jsonl"
    path.write_text(path.read_text().replace("clip 3", "clip 4"))
    with pytest.raises(DataError, match=r"manifest_v1\.jsonl: damaged.*dataset_v1\.json"):
        encode(settings(write_list(tmp_path / "more", film, range(12)), out))
    assert not (out / "dataset_v2.json").exists()


def test_a_sample_that_comes_twice_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    manifest = ManifestFile(storage, tmp_path)
    manifest.add({"sample_id": f"clip-{number}"} for number in range(20))
    manifest.finish()
    assert [json.loads(line)["index"] for line in manifest.path.open()] == list(range(20))
    assert manifest.num_bytes == manifest.path.stat().st_size
    assert manifest.checksum == hashlib.sha256(manifest.path.read_bytes()).hexdigest()
    assert manifest.holds("clip-7") and not manifest.holds("clip-20") and not manifest.holds("")
    # Ids of one hash are told apart.
    monkeypatch.setattr(manifest_module, "_hash", len)
    same = ManifestFile(storage, tmp_path)
    same.add([{"sample_id": "clip-1"}, {"sample_id": "clip-2"}])
    same.finish()
    same.add([{"sample_id": "clip-1"}])
    with pytest.raises(DataError, match="sample clip-1 was planned twice"):
        same.finish()


def test_a_damaged_unit_and_leftovers(clips: Path, tmp_path: Path) -> None:
    encode(settings(clips, tmp_path / "expected"))
    out = tmp_path / "out"
    encode(settings(clips, out, shard="0/2"))
    unit = min((out / "units").iterdir())
    unit.write_bytes(unit.read_bytes()[:100])
    (out / "shards" / "00000-000001-0.00000.0.mds").write_bytes(b"of another attempt")
    (out / "shards" / "00007-000000-0.00000.0.mds").write_bytes(b"of a list to come")
    encode(settings(clips, out))
    (out / "shards" / "00007-000000-0.00000.0.mds").unlink()
    assert tree(out) == tree(tmp_path / "expected")


def test_a_unit_of_other_encoders_does_not_count(clips: Path, tmp_path: Path) -> None:
    encode(settings(clips, tmp_path / "expected"))
    out = tmp_path / "out"
    encode(settings(clips, out, shard="0/2"))
    for path in (out / "units").iterdir():
        path.write_text(path.read_text().replace('"key": "', '"key": "0'))
    encode(settings(clips, out))
    assert tree(out) == tree(tmp_path / "expected")


def test_clips_that_failed_are_tried_again(clips: Path, film: Path, tmp_path: Path) -> None:
    shutil.copy(film, tmp_path / "other.mp4")
    folder = write_list(tmp_path / "two_films", tmp_path / "film.mp4", range(6))
    text = (folder / "clips.jsonl").read_text().splitlines()
    text[2] = text[2].replace("film.mp4", "other.mp4")
    (folder / "clips.jsonl").write_text("\n".join(text))
    shutil.copy(film, tmp_path / "film.mp4")
    (tmp_path / "other.mp4").unlink()
    out = tmp_path / "out"
    report = encode(settings(folder, out))
    assert (report.num_samples, [clip.clip_id for clip in report.dropped]) == (5, ["clip-002"])
    shutil.copy(film, tmp_path / "other.mp4")
    assert encode(settings(folder, out)).version == 1
    report = encode(settings(folder, out, retry_dropped=True))
    assert (report.version, report.num_samples, report.dropped) == (2, 6, ())


def test_what_changed_in_the_list_is_told(clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    encode(settings(clips, out))
    before = tree(out)
    path = clips / "clips.jsonl"
    path.write_text(
        path.read_text().replace('"caption": "clip 4"', '"caption": "other words"').replace("of clip 4", "x")
    )
    with caplog.at_level(logging.WARNING):
        encode(settings(clips, out))
    assert "1 clips were listed otherwise" in caplog.text
    assert tree(out) == before


def test_tasks_that_cannot_share(clips: Path, film: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would delete what the other tasks write"):
        encode(settings(clips, tmp_path / "out", shard="0/2", overwrite=True))
    with pytest.raises(ConfigError, match="run `megavideo ingest` first"):
        encode(settings(film.parent, tmp_path / "out", shard="0/2"))
    write_format_1(tmp_path / "old")
    with pytest.raises(DataError, match="older format, to which nothing can be added"):
        encode(settings(clips, tmp_path / "old"))
    assert encode(settings(clips, tmp_path / "old", overwrite=True)).num_samples == 10
    assert not list((tmp_path / "old").glob("shard.*"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.json").write_text("{}")
    with pytest.raises(DataError, match="did not write"):
        encode(settings(clips, tmp_path / "foreign", overwrite=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        encode(settings(clips, tmp_path / "file"))


def test_encoders_that_changed_are_refused(clips: Path, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(settings(clips, out))
    encode(settings(clips, tmp_path / "other", autoencoder=dataclasses.replace(PCA, fit_clips=5)))
    shutil.copy(tmp_path / "other" / "encoders" / "pca.safetensors", out / "encoders")
    with pytest.raises(DataError, match=r"encoders/pca\.safetensors: damaged"):
        encode(settings(write_list(tmp_path / "more", film, range(12)), out))


def test_only_what_is_old_is_cleared_away(tmp_path: Path) -> None:
    names = [".writing-1-a", "units/.writing-1-b", ".encode-x/thing", "mine.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with staging_folder(LocalStorage(tmp_path)) as mine, staging_folder(LocalStorage(tmp_path)) as other:
        assert mine.exists() and other.exists()
        assert all((tmp_path / name).exists() for name in names)
        old = time.time() - 4000
        for name in (*names, ".encode-x"):
            os.utime(tmp_path / name, (old, old))
    with staging_folder(LocalStorage(tmp_path)):
        assert [name for name in names if (tmp_path / name).exists()] == ["mine.txt"]


def test_number_of_workers() -> None:
    assert encode_pool.choose_workers(1, 10) == 0
    assert encode_pool.choose_workers(8, 3) == 3
    assert encode_pool.choose_workers(8, 1) == 0
