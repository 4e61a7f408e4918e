"""Small encodes for tests: lists of clips that are windows of one film, and an encode in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from streaming.base.format.mds.reader import MDSReader

from megavideo.config.schema.prepare import AutoencoderConfig, EncodeRun, TextEncoderConfig
from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.ingest.rows import CLIPS_NAME, ROOT_NAME, ClipRow, clip_line, root_line
from megavideo.observe.whole_file import TEMPORARY_PREFIX
from tests.data.clip_files import write_clip

PCA = AutoencoderConfig(kind="pca", channels=8, fit_clips=4)
BYTES = TextEncoderConfig(kind="bytes", dim=64, max_tokens=6)
MOST_CLIPS = 40
_SIDE, _FRAMES = 64, 5


def write_film(folder: Path) -> Path:
    """A film of coloured noise, long enough for `MOST_CLIPS` clips."""
    folder.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(0).integers(0, 255, (MOST_CLIPS * _FRAMES, 8, 8, 3), np.uint8)
    frames = coarse.repeat(_SIDE // 8, axis=1).repeat(_SIDE // 8, axis=2)
    return write_clip(folder / "film.mp4", frames)


def write_list(folder: Path, film: Path, numbers: Iterable[int]) -> Path:
    """A folder as ingest writes it, with the clips of these numbers; every third one has two captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in numbers:
        start = number * _FRAMES
        long, short = WeightedCaption(f"a long text of clip {number}", 3.0), WeightedCaption(f"clip {number}", 1.0)
        rows.append(
            ClipRow(
                _FRAMES, 8.0, _SIDE, _SIDE, 1.0, False, clip_id=f"clip-{number:03d}", file=film.name, caption=long.text,
                start=start, start_seconds=start / 8.0,
                scores={"motion": float(number)}, captions=(long, short) if number % 3 == 0 else (),
            )
        )  # fmt: skip
    (folder / CLIPS_NAME).write_bytes(b"".join(map(clip_line, rows)))
    (folder / ROOT_NAME).write_text(root_line(film.parent))
    return folder


def settings(src: Path, out: Path | str, **changes: object) -> EncodeRun:
    """Settings of an encode of such a list."""
    cfg = EncodeRun(
        src=str(src), out=str(out), area=4096, max_frames=5, unit_clips=4, shard_bytes=4096, workers=1,
        autoencoder=PCA, text_encoder=BYTES,
    )  # fmt: skip
    return dataclasses.replace(cfg, **changes)


def start_encode(cfg: EncodeRun, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """An encode in a process of its own, which begins at once: what it imports was imported before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.encoders.encode_cases", "megavideo.encoders.encode.run", "boto3", "cv2"])
    process = context.Process(target=_encode, args=(cfg, dict(environment or {})))
    process.start()
    return process


def _encode(cfg: EncodeRun, environment: dict[str, str]) -> None:
    from megavideo.encoders.encode.run import encode

    os.environ.update(environment)
    encode(cfg)


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, without those that are being written, or were when their writer was killed."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY_PREFIX))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def samples_in_shards(folder: Path) -> list[str]:
    """Ids of the samples of every shard that lies in a dataset, whether or not its index names it."""
    index = json.loads((folder / "index.json").read_bytes())["shards"]
    entries = {entry["raw_data"]["basename"]: entry for entry in index}
    found = []
    for path in sorted((folder / "shards").glob("*.mds")):
        reader = MDSReader.from_json(str(folder), None, entries[f"shards/{path.name}"])
        found += [reader.get_item(number)["sample_id"] for number in range(reader.samples)]
    return found
