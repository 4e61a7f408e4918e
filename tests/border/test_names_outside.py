"""A dataset, a bucket or a list of clips from elsewhere touches no file outside of its place, by no kind of name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from megavideo.cli.main import main
from megavideo.data.dataset.dataset import DATASET_NAME, INDEX_NAME, checksum, open_dataset
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.open import download_all, open_storage
from megavideo.data.stream.shards import ShardReader
from megavideo.encoders.encode.dataset_place import ENCODE_NAME, open_place
from megavideo.encoders.encode.run import encode
from megavideo.errors import DataError
from megavideo.testing.dataset import write_dataset
from tests.encoders.encode_cases import settings, write_film, write_list

KEPT = b"what the user has"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's, outside of everything that is opened."""
    path = tmp_path / "home" / "precious.txt"
    path.parent.mkdir()
    path.write_bytes(KEPT)
    return path


def up_to(victim: Path) -> str:
    """A relative name that leads to the file from any folder."""
    return "../" * 30 + str(victim).lstrip("/")


def point_shard_at(dataset: Path, name: str) -> None:
    """Give the second shard of a dataset another name, with checksums that are right."""
    info = json.loads((dataset / DATASET_NAME).read_bytes())
    index = json.loads((dataset / f"index_v{info['version']}.json").read_bytes())
    index["shards"][1]["raw_data"]["basename"] = name
    data = json.dumps(index).encode()
    info["checksums"][f"index_v{info['version']}.json"] = checksum(data)
    for file in (INDEX_NAME, f"index_v{info['version']}.json"):
        (dataset / file).write_bytes(data)
    for file in (DATASET_NAME, f"dataset_v{info['version']}.json"):
        (dataset / file).write_text(json.dumps(info))


@pytest.mark.parametrize("key", ["encoders/{victim}", "encoders/x/../../../evil", "encoders/./a", "encoders//a"])
def test_keys_of_a_bucket_write_nothing_outside(key: str, s3_bucket: str, victim: Path, tmp_path: Path) -> None:
    import boto3

    client = boto3.session.Session().client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    bucket = s3_bucket.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key="evil/" + key.format(victim=victim), Body=b"of the attacker")
    client.put_object(Bucket=bucket, Key="evil/encoders/good", Body=b"good")
    target = tmp_path / "runs" / "encoders"
    with pytest.raises(DataError, match="a name in a storage is relative and stays inside it"):
        download_all(open_storage(f"{s3_bucket}/evil"), "encoders/", target)
    assert victim.read_bytes() == KEPT
    assert not target.exists()


def test_markers_of_directories_are_no_objects(s3_bucket: str, tmp_path: Path) -> None:
    import boto3

    client = boto3.session.Session().client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    for key in ("d/", "d/encoders/", "d/encoders/good"):
        client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key=key, Body=b"")
    storage = open_storage(f"{s3_bucket}/d")
    assert storage.list() == ["encoders/good"]
    download_all(storage, "encoders/", tmp_path / "down")
    assert [path.name for path in (tmp_path / "down").iterdir()] == ["good"]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A dataset of a few clips, to which encode can add."""
    film = write_film(tmp_path / "films")
    encode(settings(write_list(tmp_path / "list", film, range(4)), tmp_path / "dataset"))
    return tmp_path / "dataset"


@pytest.mark.parametrize("absolute", [True, False])
def test_encode_json_writes_nothing_outside(absolute: bool, begun: Path, victim: Path, tmp_path: Path) -> None:
    evil = b"of the attacker"
    name = str(victim) if absolute else up_to(victim)
    value = json.loads((begun / ENCODE_NAME).read_bytes())
    value["encoders"][name] = checksum(evil)
    (begun / ENCODE_NAME).write_text(json.dumps(value))
    place = begun / "encoders" / name.lstrip("/")
    if absolute:
        place.parent.mkdir(parents=True)
        place.write_bytes(evil)
    with pytest.raises(DataError, match="stays inside"):
        open_place(LocalStorage(begun), tmp_path / "local")
    assert victim.read_bytes() == KEPT


@pytest.mark.parametrize("absolute", [True, False])
def test_the_index_deletes_and_reads_nothing_outside(absolute: bool, victim: Path, tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "dataset"), 24, shard_bytes=4096)
    point_shard_at(tmp_path / "dataset", str(victim) if absolute else up_to(victim))
    for cache in (tmp_path / "cache", None):
        with pytest.raises(DataError, match="stays inside") as told:
            ShardReader(open_dataset(str(tmp_path / "dataset")), cache)
        assert str(len(KEPT)) not in str(told.value)
    assert victim.read_bytes() == KEPT


@pytest.mark.parametrize("fifo", [False, True])
def test_links_and_pipes_in_a_dataset_are_not_read(fifo: bool, victim: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    write_dataset(str(dataset), 24, shard_bytes=4096)
    for name in ("shard.00001.mds", "encoders/pca.json"):
        (dataset / name).unlink()
        if fifo:
            os.mkfifo(dataset / name)
        else:
            (dataset / name).symlink_to(victim)
    reader = ShardReader(open_dataset(str(dataset)), None)
    with pytest.raises(DataError, match=r"a FIFO" if fifo else "leads outside"):
        for index in range(24):
            reader.read(index)
    if not fifo:
        with pytest.raises(DataError, match="leads outside"):
            download_all(LocalStorage(dataset), "encoders/", tmp_path / "run" / "encoders")
        assert not (tmp_path / "run" / "encoders" / "pca.json").exists()


def test_links_within_a_dataset_are_read(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "real"), 24, shard_bytes=4096)
    (tmp_path / "dataset").symlink_to(tmp_path / "real")
    shutil.move(tmp_path / "real" / "shard.00001.mds", tmp_path / "real" / "moved.mds")
    (tmp_path / "real" / "shard.00001.mds").symlink_to("moved.mds")
    reader = ShardReader(open_dataset(str(tmp_path / "dataset")), None)
    assert len({float(reader.read(index).latent.sum()) for index in range(24)}) == 24


def test_nothing_is_written_or_removed_behind_a_link(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "units").symlink_to(victim.parent)
    storage = LocalStorage(tmp_path / "dataset")
    faults = (
        lambda: storage.write_bytes("units/precious.txt", b"x"),
        lambda: storage.delete("units/precious.txt"),
        lambda: storage.upload(victim, "units/copy.txt"),
    )
    for fault in faults:
        with pytest.raises(DataError, match="leads outside"):
            fault()
    assert [path.name for path in victim.parent.iterdir()] == [victim.name]
    assert victim.read_bytes() == KEPT


@pytest.mark.parametrize("name", ["{victim}", "{up}", "link.mp4", "pipe.mp4"])
def test_a_list_of_clips_names_nothing_outside(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    film = write_film(tmp_path / "films")
    secret = shutil.copy(film, tmp_path / "secret.mp4")
    (tmp_path / "films" / "link.mp4").symlink_to(secret)
    os.mkfifo(tmp_path / "films" / "pipe.mp4")
    listed = write_list(tmp_path / "list", film, range(4))
    lines = [json.loads(line) for line in (listed / "clips.jsonl").read_text().splitlines()]
    lines[2]["file"] = name.format(victim=secret, up=up_to(Path(secret)))
    (listed / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["encode", f"src={listed}", f"out={tmp_path / 'out'}", "area=4096", "autoencoder.fit_clips=2"]
    stays = name in ("link.mp4", "pipe.mp4")
    assert main(words) == (0 if stays else 2)
    told = capfd.readouterr().err
    assert "Traceback" not in told
    if stays:
        info = open_dataset(str(tmp_path / "out")).info
        assert info.num_samples == 3
        assert [clip.file for clip in info.dropped] == [name]
        assert ("leads outside" if name == "link.mp4" else "FIFO") in info.dropped[0].reason
    else:
        assert "stays inside" in told and "clips.jsonl" in told
