"""Every format that comes from outside: well-formed examples of it, and what of ours reads it."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import yaml
from PIL import Image

from megavideo.checkpoint.contents import contents_of
from megavideo.checkpoint.manifest import MANIFEST, file_digest
from megavideo.checkpoint.survey import Looked, Shelf, survey
from megavideo.config.curriculum import stage_names
from megavideo.config.dump import from_yaml, to_yaml
from megavideo.config.load import load
from megavideo.config.schema.fit import ColumnsConfig
from megavideo.config.schema.train import TrainRun
from megavideo.data.clips.captions import read_caption_table, read_sidecar_captions
from megavideo.data.clips.media import probe
from megavideo.data.dataset.dataset import DATASET_NAME, checksum, open_dataset
from megavideo.data.dataset.rates import NOT_COUNTED
from megavideo.data.ingest.part import Identity, Part, Piece, read_part, write_part
from megavideo.data.ingest.rows import CLIPS_NAME, ROOT_NAME, read_clip_list
from megavideo.data.storage.local import LocalStorage
from megavideo.data.stream.shards import ShardReader
from megavideo.encoders.captioner.answer_log import AnswerLog
from megavideo.encoders.encode.dataset_place import open_place
from megavideo.encoders.encode.plan import read_plans
from megavideo.encoders.encode.unit import read_record
from megavideo.encoders.folder import load_encoders
from megavideo.observe.report.record import changes_since
from megavideo.observe.report.record import read_record as read_run
from megavideo.observe.status import read_status
from megavideo.planning.measured import PUBLISHED, read_rows
from megavideo.scaling.table import read_table
from megavideo.train.position import read_position
from tests.checkpoint.test_reshard import save_tp
from tests.data.clip_files import moving_square, write_clip
from tests.encoders.encode_cases import settings, write_film, write_list
from tests.fuzz.damage import Damage, damaged_bytes, damaged_json, damaged_lines
from tests.observe.made_run import make_run

Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Format:
    """A format: how it is damaged, and what reads the damaged bytes."""

    name: str
    damaged: Damage
    read: Read


def formats(folder: Path) -> dict[str, Format]:
    """All of them by name; their readers work in `folder`."""
    made = [
        *_of_datasets(folder / "dataset"),
        *_of_encoding(folder / "encode"),
        *_of_lists(folder / "lists"),
        *_of_tables(folder / "tables"),
        *_of_checkpoints(folder / "checkpoint"),
        *_of_runs(folder / "run"),
        *_of_media(folder / "media"),
    ]
    return {format.name: format for format in made}


def _file(name: str, path: Path, read: Callable[[], object], damage: Damage | None = None) -> Format:
    """A format of one file, which is overwritten with each damaged content."""
    content = path.read_bytes()
    if damage is None:
        damage = damaged_json(json.loads(content)) if path.suffix == ".json" else damaged_bytes(content)

    def read_damaged(data: bytes) -> object:
        path.write_bytes(data)
        try:
            return read()
        finally:
            path.write_bytes(content)

    return Format(name, damage, read_damaged)


def _lines(path: Path) -> Damage:
    return damaged_lines(path.read_bytes())


def _of_datasets(folder: Path) -> list[Format]:
    from megavideo.testing.dataset import write_dataset

    info = write_dataset(str(folder), 6, shard_bytes=2048)
    storage = LocalStorage(folder)

    def with_sums(name: str, data: bytes) -> None:
        """Put a damaged small file, and the checksum that an attacker would put beside it."""
        (folder / name).write_bytes(data)
        value = json.loads(described)
        value["checksums"][name] = checksum(data)
        (folder / DATASET_NAME).write_text(json.dumps(value))

    def small(name: str, use: Callable[[], object], damage: Damage | None = None) -> Format:
        content = (folder / name).read_bytes()

        def read(data: bytes) -> object:
            with_sums(name, data)
            try:
                return use()
            finally:
                (folder / name).write_bytes(content)
                (folder / DATASET_NAME).write_bytes(described)

        return Format(f"dataset {name}", damage or damaged_json(json.loads(content)), read)

    def samples() -> object:
        dataset = open_dataset(str(folder))
        reader = ShardReader(dataset, None)
        return [reader.read(sample.index, sample.sample_id) for sample in dataset.samples]

    def shard(data: bytes) -> object:
        index = json.loads((folder / info.index_name).read_bytes())
        entry = index["shards"][0]
        path = folder / entry["raw_data"]["basename"]
        content = path.read_bytes()
        path.write_bytes(data)
        entry["raw_data"] |= {"bytes": len(data), "hashes": {"xxh64": xxhash.xxh64(data).hexdigest()}}
        try:
            return indexed.read(json.dumps(index).encode())
        finally:
            path.write_bytes(content)

    described = (folder / DATASET_NAME).read_bytes()
    indexed = small(info.index_name, samples)
    first = json.loads((folder / info.index_name).read_bytes())["shards"][0]["raw_data"]["basename"]
    return [
        _file("dataset dataset.json", folder / DATASET_NAME, lambda: open_dataset(str(folder)).samples),
        indexed,
        small(info.manifest_name, samples, _lines(folder / info.manifest_name)),
        small("null_text.safetensors", lambda: open_dataset(str(folder)),
              damaged_bytes((folder / "null_text.safetensors").read_bytes())),
        Format("dataset shard", damaged_bytes(storage.read_bytes(first)), shard),
        *(_file(f"encoders {path.name}", path, lambda: _used_encoders(folder / "encoders"))
          for path in sorted((folder / "encoders").iterdir())),
    ]  # fmt: skip


def _used_encoders(folder: Path) -> object:
    return load_encoders(folder).text_encoder.encode(["a red square"])


def _of_encoding(folder: Path) -> list[Format]:
    from megavideo.encoders.encode.run import encode

    film = write_film(folder / "clips")
    out = folder / "out"
    encode(settings(write_list(folder / "list", film, range(4)), out))
    storage = LocalStorage(out)
    plan = read_plans(storage)[0]
    unit = next(plan.units())

    def opened() -> object:
        local = folder / "local"
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir()
        return open_place(storage, local)

    def taken() -> object:
        record = read_record(storage, unit, place_key)
        return None if record is None else NOT_COUNTED.with_rows(record.rows)

    place_key = json.loads((out / unit.file).read_bytes())["key"]
    return [
        _file("encode encode.json", out / "encode.json", opened),
        _file("encode plan", next((out / "plans").glob("*.json")), lambda: read_plans(storage)),
        _file("encode unit", out / unit.file, taken),
    ]


def _of_tables(folder: Path) -> list[Format]:
    folder.mkdir(parents=True)
    path = folder / "points.csv"
    path.write_text('params,tokens,flops,loss,"a, b"\n1e7,2e9,1.2e17,3.5,"x\ny"\n2e7,1e9,1.2e17,3.4,\n')
    return [_file("points.csv", path, lambda: read_table(path, ColumnsConfig(), six_nd=False))]


def _of_lists(folder: Path) -> list[Format]:
    film = write_film(folder / "clips")
    listed = write_list(folder / "list", film, range(4))
    captions, sidecar = folder / "clips" / "captions.jsonl", folder / "clips" / "film.json"
    rows = [{"file": "film.mp4", "caption": "a"}, {"file": "film.mp4", "clip_id": "film-1", "captions": ["a", "b"]},
            {"file": "b.mp4", "captions": [{"text": "a", "weight": 2.5, "source": "vlm"}]}]  # fmt: skip
    captions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sidecar.write_text(json.dumps(rows[2]))
    part = Part("film.mp4", "recipe", Identity("m", 1, "d"), probe(film), True,
                (Piece(0, 0.0, "ab", "abab", 5, 8.0, (0, 0, 64, 64), {"motion": 1.0}, "ff", "ff", ""),))  # fmt: skip
    write_part(folder / "parts", part)
    steps = folder / "steps.csv"
    steps.write_bytes(PUBLISHED.read_bytes())
    answers = folder / "answers"
    with AnswerLog(answers, _alone(), {"model": "m"}, overwrite=False) as log:
        log.add([("clip-0", "what is it?", _answer())])

    def answered() -> object:
        with AnswerLog(answers, _alone(), {"model": "m"}, overwrite=False) as log:
            return log.get("clip-0", "what is it?")

    return [
        _file("list clips.jsonl", listed / CLIPS_NAME, lambda: read_clip_list(listed), _lines(listed / CLIPS_NAME)),
        _file("list ingest.json", listed / ROOT_NAME, lambda: read_clip_list(listed)),
        _file("captions.jsonl", captions, lambda: read_caption_table(captions, captions.parent), _lines(captions)),
        _file("sidecar", sidecar, lambda: read_sidecar_captions(film)),
        _file("measured steps", steps, lambda: read_rows(steps)),
        _file("part", next((folder / "parts").rglob("*.json")), lambda: read_part(folder / "parts", "film.mp4")),
        _file("answers", next(answers.glob("*.jsonl")), answered, _lines(next(answers.glob("*.jsonl")))),
    ]


def _alone() -> Any:
    from megavideo.data.ingest.share import Share

    return Share(0, 1)


def _answer() -> Any:
    from megavideo.encoders.captioner.answer_log import Answer

    return Answer("a square", False)


def _of_checkpoints(folder: Path) -> list[Format]:
    saved = save_tp(folder / "checkpoints", 2, ("qkv.weight", "norm.weight"), pieces=2)
    text = (saved / MANIFEST).read_bytes()
    value = json.loads(text)
    del value["digest"]
    tensors = saved / value["files"][0]["file"]

    def read() -> object:
        found = survey(Shelf(saved.parent), Looked(hashes=True, values=True))
        contents = contents_of(saved)
        return found, read_position(contents.progress, saved)

    def manifest(data: bytes) -> object:
        """With the digest that goes with it, as an attacker would put it."""
        if data.rstrip().endswith(b"}"):
            body = data.rstrip()
            data = body[:-1] + f', "digest": "{xxhash.xxh64(body).hexdigest()}"}}'.encode()
        return whole.read(data)

    def fragments(data: bytes) -> object:
        content = tensors.read_bytes()
        tensors.write_bytes(data)
        changed = json.loads(json.dumps(value))
        changed["files"][0] |= {"size_bytes": len(data), "xxh64": file_digest(tensors)}
        try:
            return manifest(json.dumps(changed).encode())
        finally:
            tensors.write_bytes(content)

    whole = _file("checkpoint as written", saved / MANIFEST, read)
    return [
        whole,
        Format("checkpoint manifest", damaged_json(value), manifest),
        Format("checkpoint fragments", damaged_bytes(tensors.read_bytes()), fragments),
    ]


def _of_runs(folder: Path) -> list[Format]:
    run = make_run(folder, samples=False, steps=130)
    written = yaml.safe_load(run.config.read_text())
    written["stages"] = dict(list(written["stages"].items())[:1])
    for path in (run.config, folder / "config.1.yaml"):  # few and short, as they are read a hundred thousand times
        path.write_text(yaml.safe_dump(written))
    curriculum = folder / "curriculum.yaml"
    curriculum.write_text(yaml.safe_dump({"stages": {"a": {"train": {"steps": 3}}, "b": {"data": {"area": [1, 2]}}}}))
    for path in (run.metrics, run.stages, run.faults, run.validation):
        if path.exists():
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))

    def looked_at() -> object:
        record = read_run(folder)
        return read_status(folder, 20), changes_since(record)

    def configured() -> object:
        return from_yaml(TrainRun, settings_file.read_text(encoding="utf-8", errors="replace"), str(settings_file))

    settings_file = folder / "settings.yaml"
    settings_file.write_text(to_yaml(load(TrainRun, "train", ["run=small", "data.uri=somewhere"])))

    rows = [path for path in (run.metrics, run.stages, run.faults, run.validation) if path.exists()]
    return [
        *(_file(f"run {path.name}", path, looked_at, _lines(path)) for path in rows),
        _file("run config.yaml", run.config, looked_at),
        _file("settings", settings_file, configured),
        _file("run code_version.json", run.code_version, looked_at),
        _file("curriculum", curriculum, lambda: stage_names(curriculum)),
    ]


def _of_media(folder: Path) -> list[Format]:
    folder.mkdir(parents=True)
    square = moving_square(4, 32, 32)
    seeds: dict[str, bytes] = {}
    for suffix, codec in ((".mp4", "libx264"), (".mkv", "libx264"), (".webm", "libvpx-vp9"), (".avi", "mpeg4"),
                          (".ts", "mpeg2video"), (".mov", "mjpeg")):  # fmt: skip
        fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        seeds[suffix] = write_clip(folder / f"seed{suffix}", square, 8 if codec != "mpeg2video" else 25, codec,
                                   fmt).read_bytes()  # fmt: skip
    first, *others = (Image.fromarray(frame) for frame in square)
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".bmp", "BMP"), (".tiff", "TIFF")):
        buffer = io.BytesIO()
        first.save(buffer, kind)
        seeds[suffix] = buffer.getvalue()
    for suffix, kind in ((".gif", "GIF"), (".webp", "WEBP")):
        buffer = io.BytesIO()
        first.save(buffer, kind, save_all=True, append_images=others)
        seeds[suffix] = buffer.getvalue()

    def reader(suffix: str) -> Read:
        path = folder / f"damaged{suffix}"

        def read(data: bytes) -> object:
            path.write_bytes(data)
            info = probe(path)
            assert info.frames > 0 and math.isfinite(info.fps) and np.prod([info.width, info.height]) > 0
            return info

        return read

    return [Format(f"media {suffix}", damaged_bytes(seed), reader(suffix))
            for suffix, seed in seeds.items()]  # fmt: skip
