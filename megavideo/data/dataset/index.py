"""The index of a dataset: its shards, as the library that reads them wants them told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from megavideo.border.fields import Count
from megavideo.border.json_text import parse_json, read_json
from megavideo.border.names import shown, stored_name
from megavideo.border.refused import Refused
from megavideo.data.dataset.caption_texts import CAPTION_COLUMNS
from megavideo.data.dataset.given_latents import GIVEN_COLUMNS, given_columns
from megavideo.data.dataset.manifest_rows import damaged

# Columns of all shards and their MDS encodings: latent [C, t, h, w], text [L, text_dim] of all captions, unpadded.
COLUMNS = {
    "sample_id": "str",
    "latent": "ndarray:float16",
    "text": "ndarray:float16",
    "caption": "str",
    "fps": "float64",
    **CAPTION_COLUMNS,
}
_KNOWN_COLUMNS = {**COLUMNS, **given_columns(tuple(GIVEN_COLUMNS), with_image=True)}
_BYTES_OF_COLUMNS = {"fps": 8}  # of those whose values are all of one length
_REMEDY = "encode again with overwrite=true, and use no dataset of those whom you do not trust"


class Described(Protocol):
    """What the index must agree with: the description of the dataset."""

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""

    @property
    def index_name(self) -> str:
        """The file of the index."""


@dataclass(frozen=True)
class ShardFile:
    """The file of a shard: its name in the dataset, its size, and its hashes by their kind."""

    basename: str
    bytes: Count
    hashes: dict[str, str]

    def __post_init__(self) -> None:
        """Raise Refused for a name that leaves the dataset, or is none of ours."""
        stored_name(self.basename)


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the MDS format, in the order of the fields of that library.

    `column_sizes` are bytes of a column's values where all have the same, `size_limit` bounds the shard.
    """

    column_encodings: tuple[str, ...]
    column_names: tuple[str, ...]
    column_sizes: tuple[Count | None, ...]
    compression: None
    format: Literal["mds"]
    hashes: tuple[str, ...]
    raw_data: ShardFile
    samples: Count
    size_limit: Count | None
    version: Literal[2]
    zip_data: None

    def __post_init__(self) -> None:
        """Raise Refused for columns that no dataset has: the library runs code for some encodings."""
        columns = (self.column_names, self.column_encodings, self.column_sizes)
        if len({len(column) for column in columns}) != 1 or len(set(self.column_names)) != len(self.column_names):
            raise Refused("names, encodings and sizes of its columns are not of the same columns")
        for name, encoding, size in zip(*columns, strict=True):
            if _KNOWN_COLUMNS.get(name) != encoding:
                raise Refused(
                    f"a column {shown(name)} of encoding {shown(encoding)}, which no dataset of megavideo has: reading "
                    "it may run code"
                )
            if size != _BYTES_OF_COLUMNS.get(name):
                raise Refused(f"a column {name!r} whose values have {size} bytes")

    def to_mds(self) -> dict[str, Any]:
        """As the library takes it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class _Index:
    shards: tuple[ShardEntry, ...]


def parse_index(uri: str, data: bytes, info: Described) -> list[ShardEntry]:
    """The shards in the index of the dataset at `uri`; DataError where it is damaged or does not fit `info`."""
    try:
        shards = parse_json(data, _Index).shards
    except Refused as error:
        raise damaged(uri, info.index_name, f"{error}; {_REMEDY}" if "run code" in str(error) else error) from error
    num_samples = sum(shard.samples for shard in shards)
    if num_samples != info.num_samples:
        raise damaged(uri, info.index_name, f"{num_samples} samples, and the description says {info.num_samples}")
    return list(shards)


def read_index(path: Path) -> tuple[ShardEntry, ...]:
    """The shards that the library tells of in an index that it has just written."""
    return read_json(path, _Index).shards


def index_bytes(shards: Sequence[ShardEntry]) -> bytes:
    """The content of the index."""
    return json.dumps({"version": 2, "shards": [shard.to_mds() for shard in shards]}, sort_keys=True).encode()
