"""An encoded dataset opened for reading: its description, its manifest and the text used for guidance dropout.

Layout: `dataset.json` (written last: where it is, the dataset is whole), `manifest.jsonl`, `null_text.safetensors`,
`index.json` with MDS shards, and `encoders/`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from megavideo.data.storage import Storage, open_storage
from megavideo.errors import DataError
from megavideo.types import Grid, SampleInfo

DATASET_NAME = "dataset.json"
MANIFEST_NAME = "manifest.jsonl"
NULL_TEXT_NAME = "null_text.safetensors"
INDEX_NAME = "index.json"
ENCODERS_PREFIX = "encoders/"
FORMAT = 1
# Columns of the shards and their MDS encodings: latent [C, t, h, w], text [L, text_dim] without padding.
COLUMNS = {
    "sample_id": "str",
    "latent": "ndarray:float16",
    "text": "ndarray:float16",
    "caption": "str",
    "fps": "float64",
}


@dataclass(frozen=True)
class DroppedClip:
    """A clip that was ingested and not encoded, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` holds. `checksums` are SHA-256 sums of the small files by name; shards carry their own."""

    format: int
    num_samples: int
    latent_channels: int
    text_dim: int
    patch: tuple[int, int, int]
    time_ratio: int
    space_ratio: int
    dropped: tuple[DroppedClip, ...]
    captions_cut: int
    checksums: dict[str, str]


@dataclass(frozen=True)
class LatentDataset:
    """A whole dataset. `null_text` [L0, text_dim] float16 is the encoding of the empty caption."""

    uri: str
    info: DatasetInfo
    samples: tuple[SampleInfo, ...]
    null_text: np.ndarray
    storage: Storage


def open_dataset(uri: str) -> LatentDataset:
    """Open the dataset at `uri`, a folder or an s3:// prefix; shards are not read.

    Raises DataError where it is missing, unfinished, of another format, or where its files do not belong together.
    """
    storage = open_storage(uri)
    if not storage.exists(DATASET_NAME):
        raise DataError(
            f"{uri}: no {DATASET_NAME}, so this is no dataset or one whose encoding did not finish. "
            "Remedy: give data.uri the out= of `megavideo encode`, or run encode again"
        )
    info = _read_info(uri, storage.read_bytes(DATASET_NAME))
    small = {name: _read_checked(uri, storage, name, info) for name in (MANIFEST_NAME, NULL_TEXT_NAME, INDEX_NAME)}
    samples = _read_manifest(uri, small[MANIFEST_NAME], info)
    _check_index(uri, small[INDEX_NAME], info)
    return LatentDataset(uri, info, samples, _read_null_text(uri, small[NULL_TEXT_NAME], info), storage)


def info_bytes(info: DatasetInfo) -> bytes:
    """The content of `dataset.json`."""
    return (json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def manifest_line(sample: SampleInfo, pixels: tuple[int, int, int]) -> str:
    """One line of the manifest; `pixels` are frames, height and width of the encoded clip."""
    row = {
        "sample_id": sample.sample_id,
        "index": sample.index,
        "latent": [sample.latent.t, sample.latent.h, sample.latent.w],
        "text_tokens": sample.text_tokens,
        "fps": sample.fps,
        "caption": sample.caption,
        "source": sample.source,
        "pixels": list(pixels),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def null_text_bytes(text: np.ndarray) -> bytes:
    """The content of `null_text.safetensors` for `text` [L0, text_dim]."""
    return save({"text": np.ascontiguousarray(text, dtype=np.float16)})


def checksum(data: bytes) -> str:
    """SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _damaged(uri: str, name: str, reason: object) -> DataError:
    return DataError(f"{uri}/{name}: damaged ({reason}). Remedy: run encode again with overwrite=true")


def _read_info(uri: str, data: bytes) -> DatasetInfo:
    try:
        value: dict[str, Any] = json.loads(data)
        if value["format"] != FORMAT:
            raise DataError(
                f"{uri}/{DATASET_NAME}: format {value['format']}, and this version reads {FORMAT}. "
                "Remedy: encode again with this version"
            )
        patch_t, patch_h, patch_w = (int(side) for side in value["patch"])
        return DatasetInfo(
            format=FORMAT,
            num_samples=int(value["num_samples"]),
            latent_channels=int(value["latent_channels"]),
            text_dim=int(value["text_dim"]),
            patch=(patch_t, patch_h, patch_w),
            time_ratio=int(value["time_ratio"]),
            space_ratio=int(value["space_ratio"]),
            dropped=tuple(DroppedClip(**clip) for clip in value["dropped"]),
            captions_cut=int(value["captions_cut"]),
            checksums=dict(value["checksums"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(uri, DATASET_NAME, error) from error


def _read_checked(uri: str, storage: Storage, name: str, info: DatasetInfo) -> bytes:
    data = storage.read_bytes(name)
    if checksum(data) != info.checksums.get(name):
        raise _damaged(uri, name, f"its checksum is not the one in {DATASET_NAME}")
    return data


def _read_manifest(uri: str, data: bytes, info: DatasetInfo) -> tuple[SampleInfo, ...]:
    samples: list[SampleInfo] = []
    try:
        for line in data.splitlines():
            row = json.loads(line)
            samples.append(
                SampleInfo(
                    sample_id=row["sample_id"],
                    index=row["index"],
                    latent=Grid(*row["latent"]),
                    text_tokens=row["text_tokens"],
                    fps=row["fps"],
                    caption=row["caption"],
                    source=row["source"],
                )
            )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(uri, MANIFEST_NAME, error) from error
    if [sample.index for sample in samples] != list(range(info.num_samples)):
        raise _damaged(uri, MANIFEST_NAME, f"its indices are not 0 to {info.num_samples - 1} in order")
    patch_t, patch_h, patch_w = info.patch
    for sample in samples:
        if sample.latent.t % patch_t or sample.latent.h % patch_h or sample.latent.w % patch_w:
            raise _damaged(uri, MANIFEST_NAME, f"sample {sample.sample_id} does not divide by patch {info.patch}")
    return tuple(samples)


def _check_index(uri: str, data: bytes, info: DatasetInfo) -> None:
    try:
        num_samples = sum(int(shard["samples"]) for shard in json.loads(data)["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(uri, INDEX_NAME, error) from error
    if num_samples != info.num_samples:
        raise _damaged(uri, INDEX_NAME, f"{num_samples} samples, and {DATASET_NAME} says {info.num_samples}")


def _read_null_text(uri: str, data: bytes, info: DatasetInfo) -> np.ndarray:
    try:
        text: np.ndarray = load(data)["text"]
    except (SafetensorError, KeyError) as error:
        raise _damaged(uri, NULL_TEXT_NAME, error) from error
    if text.ndim != 2 or text.shape[0] < 1 or text.shape[1] != info.text_dim:
        raise _damaged(uri, NULL_TEXT_NAME, f"shape {text.shape}, and [L, {info.text_dim}] is due")
    return text
