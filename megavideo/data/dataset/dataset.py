"""An encoded dataset opened for reading: its description, its manifest and the text used for guidance dropout.

A dataset grows by versions: `dataset_v1.json` with `manifest_v1.jsonl` and `index_v1.json`, then `dataset_v2.json` and
so on, each naming all samples of the one before it, under the same indices, and new ones. A version is never changed.
`dataset.json` and `index.json` are copies of the newest. Shards (MDS) lie under `shards/`; `null_text.safetensors` and
`encoders/` are the same for all versions. Format 1 had one version, without a number in its names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from safetensors.numpy import save

from megavideo.border.fields import Count, Finite, Size
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.border.tensor_file import parse_tensors
from megavideo.config.schema.prepare import GivenTask
from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.dataset.index import ShardEntry, parse_index
from megavideo.data.dataset.manifest import Manifest
from megavideo.data.dataset.manifest_rows import ManifestRows, damaged
from megavideo.data.dataset.rates import NOT_COUNTED, FrameCounts
from megavideo.data.storage.open import open_storage
from megavideo.data.storage.protocol import Storage
from megavideo.data.storage.retry import RetryPolicy
from megavideo.errors import DataError
from megavideo.types import SampleInfo

DATASET_NAME = "dataset.json"
NULL_TEXT_NAME = "null_text.safetensors"
INDEX_NAME = "index.json"
ENCODERS_PREFIX = "encoders/"
FORMAT = 2
_OLD_FORMAT = 1


@dataclass(frozen=True)
class DroppedClip:
    """A clip that was ingested and not encoded, and why. `clip_id` is empty where it was never tried."""

    file: str
    reason: str
    clip_id: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` holds of a version.

    `checksums` are SHA-256 sums of the small files by name; shards carry their own. `num_bytes` are those of shards,
    manifest and index. `num_plans` tells how many lists of work it comes from. `psnr_db` is the autoencoder's on
    `psnr_clips` clips, from the latents as stored. `frames` tells what of its clips' frames it shows. `given_latents`
    are the tasks whose given frames are stored too, `image_dim` is the width of the embeddings of first frames, if they
    are. `version` is 0 in the format that had none.
    """

    format: int
    num_samples: Count
    latent_channels: Size
    text_dim: Size
    patch: tuple[Size, Size, Size]
    time_ratio: Size
    space_ratio: Size
    dropped: tuple[DroppedClip, ...]
    captions_cut: Count
    checksums: dict[str, str]
    version: Count = 1
    num_plans: Count = 0
    num_bytes: Count = 0
    psnr_db: Finite | None = None
    psnr_clips: Count = 0
    frames: FrameCounts = NOT_COUNTED
    given_latents: tuple[GivenTask, ...] = ()
    image_dim: Size | None = None

    @property
    def index_name(self) -> str:
        """The file that lists the shards."""
        return index_name(self.version)

    @property
    def manifest_name(self) -> str:
        """The file that lists the samples."""
        return f"manifest_v{self.version}.jsonl" if self.version else "manifest.jsonl"


@dataclass(frozen=True)
class LatentDataset:
    """A whole dataset. `null_text` [L0, text_dim] float16 is the encoding of the empty caption.

    Its samples are in the manifest, which is not read yet: as columns for any number of them (`data/table/open.py`), or
    as `samples`, one object each, for as many as memory takes.
    """

    uri: str
    info: DatasetInfo
    null_text: np.ndarray
    storage: Storage

    def read_index(self) -> list[ShardEntry]:
        """Its shards, read from the index; DataError where that is damaged."""
        return parse_index(self.uri, self.storage.read_bytes(self.info.index_name), self.info)

    @property
    def manifest(self) -> Manifest:
        """The list of its samples, as a file to be read."""
        info = self.info
        name = info.manifest_name
        rows = ManifestRows(self.uri, name, info.num_samples, info.patch, info.time_ratio, info.space_ratio)
        return Manifest(rows, self.storage, info.checksums.get(name, ""))

    @cached_property
    def samples(self) -> tuple[SampleInfo, ...]:
        """Every sample, read when first asked for; DataError where the manifest is damaged."""
        return tuple(sample for part in self.manifest.parts() for sample in part.samples())


def open_dataset(uri: str, retry: RetryPolicy | None = None, version: int | None = None) -> LatentDataset:
    """Open the dataset at `uri`, a folder or an s3:// prefix; neither shards nor manifest are read.

    `retry` is for a store; `version` is an earlier one than the newest. Raises DataError where it is missing,
    unfinished, of another format, or where its small files do not belong together.
    """
    storage = open_storage(uri, retry)
    name = version_name(version) if version else DATASET_NAME
    if not storage.exists(name):
        if version and storage.exists(DATASET_NAME):
            newest = parse_info(uri, storage.read_bytes(DATASET_NAME)).version
            raise DataError(f"{uri}: has no version {version}; its newest is {newest}. Remedy: give one that is there")
        raise DataError(
            f"{uri}: no {name}, so this is no dataset or one whose encoding did not finish. "
            "Remedy: give data.uri the out= of `megavideo encode`, or run encode again"
        )
    info = parse_info(uri, storage.read_bytes(name), name)
    small = {name: _read_checked(uri, storage, name, info) for name in (NULL_TEXT_NAME, info.index_name)}
    parse_index(uri, small[info.index_name], info)
    return LatentDataset(uri, info, _read_null_text(uri, small[NULL_TEXT_NAME], info), storage)


def version_name(version: int) -> str:
    """The description of a version."""
    return f"dataset_v{version}.json"


def index_name(version: int) -> str:
    """The file that lists the shards of a version."""
    return f"index_v{version}.json" if version else INDEX_NAME


def info_bytes(info: DatasetInfo) -> bytes:
    """The content of `dataset.json`."""
    value = asdict(info)
    if info.format == _OLD_FORMAT:
        for name in (
            "version", "num_plans", "num_bytes", "psnr_db", "psnr_clips", "frames", "given_latents", "image_dim",
        ):  # fmt: skip
            del value[name]
        for clip in value["dropped"]:
            del clip["clip_id"]
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def manifest_row(
    sample: SampleInfo, pixels: tuple[int, int, int], captions: Sequence[tuple[WeightedCaption, int]], **more: Any
) -> dict[str, Any]:
    """One row of the manifest.

    `pixels` are frames, height and width of the encoded clip, `captions` its captions with their numbers of tokens;
    `more` is what else is known of it.
    """
    return {
        "sample_id": sample.sample_id,
        "index": sample.index,
        "latent": [sample.latent.t, sample.latent.h, sample.latent.w],
        "text_tokens": sample.text_tokens,
        "fps": sample.fps,
        "caption": sample.caption,
        "source": sample.source,
        "pixels": list(pixels),
        "captions": [{**asdict(caption), "tokens": tokens} for caption, tokens in captions],
        **more,
    }


def manifest_line(row: Mapping[str, Any]) -> str:
    """A row as a line of the manifest."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def null_text_bytes(text: np.ndarray) -> bytes:
    """The content of `null_text.safetensors` for `text` [L0, text_dim]."""
    return save({"text": np.ascontiguousarray(text, dtype=np.float16)})


def checksum(data: bytes) -> str:
    """SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def parse_info(uri: str, data: bytes, name: str = DATASET_NAME) -> DatasetInfo:
    """The description in `data`, which was read from `name`; DataError where it is damaged or of another format."""
    try:
        written_as = parse_json(data, _Format).format
        if written_as not in (FORMAT, _OLD_FORMAT):
            raise DataError(
                f"{uri}/{name}: format {written_as}, and this version of megavideo reads {_OLD_FORMAT} and "
                f"{FORMAT}. Remedy: encode again with this version"
            )
        info = parse_json(data, DatasetInfo)
    except Refused as error:
        raise damaged(uri, name, error) from error
    return replace(info, version=0) if written_as == _OLD_FORMAT else info


@dataclass(frozen=True)
class _Format:
    format: int


def _read_checked(uri: str, storage: Storage, name: str, info: DatasetInfo) -> bytes:
    data = storage.read_bytes(name)
    if checksum(data) != info.checksums.get(name):
        raise damaged(uri, name, f"its checksum is not the one in {DATASET_NAME}")
    return data


def _read_null_text(uri: str, data: bytes, info: DatasetInfo) -> np.ndarray:
    try:
        text: np.ndarray = parse_tensors(data)["text"]
    except (Refused, KeyError) as error:
        raise damaged(uri, NULL_TEXT_NAME, error) from error
    if text.ndim != 2 or text.shape[0] < 1 or text.shape[1] != info.text_dim:
        raise damaged(uri, NULL_TEXT_NAME, f"shape {text.shape}, and [L, {info.text_dim}] is due")
    return text
