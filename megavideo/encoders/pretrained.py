"""Folders of pretrained weights: found, checked and recognised again, never fetched.

Only local safetensors are read: nothing is downloaded and no pickle is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megavideo.border.files import read_file
from megavideo.border.json_text import parse_json, read_json
from megavideo.border.refused import Refused
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

_CONFIG_NAME = "config.json"
_HEAD_BYTES = 1 << 20
_BLOCKS, _BLOCK_BYTES = 16, 64 << 10
_LONGEST_HEADER_BYTES = 100 << 20  # that safetensors itself accepts
_SPREAD = "spread:"  # before a fingerprint that looks at all of a file, unlike those of older datasets


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder with `config.json` and safetensors weights.

    `fingerprint` changes with the configuration, with the name, size, names and shapes of tensors of any weight file,
    and with the tensors themselves as far as a few blocks of each file show them: its first MiB, sixteen of 64 KiB at
    equal distances, and the last 64 KiB. Training any large part of the weights changes some of these. What is missed
    is a change that lies wholly between two blocks, as of one small tensor in a file of many gigabytes.
    """

    path: Path
    config: dict[str, Any]
    fingerprint: str

    def is_the_one(self, fingerprint: str) -> bool:
        """Whether the fingerprint, be it of an older dataset that knows only the first MiB of each file, is of this."""
        if fingerprint.startswith(_SPREAD):
            return fingerprint == self.fingerprint
        return fingerprint == _digest_of(self.path, _head)


def open_pretrained(field: str, value: str | None, part: str) -> PretrainedFolder:
    """Check the folder that the setting `field` names.

    It is the folder itself, or `part` of a diffusers pipeline folder. Raises ConfigError where the folder, its
    configuration or its safetensors weights are missing.
    """
    if not value:
        raise ConfigError(field, value, "this kind is loaded from a folder", f"give {field}=FOLDER")
    path = Path(value).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(field, value, "no such folder", "give a local folder; nothing is downloaded")
    if not (path / _CONFIG_NAME).is_file() and (path / part / _CONFIG_NAME).is_file():
        path = path / part
    try:
        raw = read_file(path / _CONFIG_NAME)
        config = parse_json(raw, dict[str, Any])
    except (OSError, Refused) as error:
        raise ConfigError(
            field, value, f"its {_CONFIG_NAME} cannot be read ({error})", "give a folder written by save_pretrained"
        ) from error
    if not _weights(path):
        raise ConfigError(
            field, value, "it holds no .safetensors weights", "save them with save_pretrained(safe_serialization=True)"
        )
    return PretrainedFolder(path, config, _SPREAD + _digest_of(path, _spread))


@dataclass(frozen=True)
class Stored:
    """Where the weights of an encoder are, and by what they are known again."""

    path: str
    fingerprint: str


def reopen_pretrained(description: Path, stored: Stored, part: str) -> PretrainedFolder:
    """Find again the folder that `description` (a JSON file of a dataset, with content `stored`) refers to.

    Raises DataError where it has gone or holds other weights.
    """
    remedy = (
        f"Remedy: put that folder, or a link to it, at {stored.path}; to sample a run it is enough to write another "
        f'place of it as "path" in the run\'s encoders/{description.name}'
    )
    try:
        folder = open_pretrained("path", stored.path, part)
    except ConfigError as error:
        rule = f"the weights it refers to are not usable at {stored.path} ({error.rule})"
        raise DataError(f"{description}: {rule}. {remedy}") from error
    if not folder.is_the_one(stored.fingerprint):
        rule = f"{folder.path} holds other weights than those the dataset was encoded with"
        raise DataError(f"{description}: {rule}. {remedy}")
    return folder


def move_pretrained(description: Path, field: str, value: str, part: str) -> None:
    """Have `description`, a file as for `reopen_pretrained`, refer to the folder that the setting `field` names.

    Raises ConfigError where that folder does not hold the same weights.
    """
    folder = open_pretrained(field, value, part)
    stored = read_json(description, dict[str, Any])
    if not folder.is_the_one(stored["fingerprint"]):
        rule = "it holds other weights than those that the dataset was begun with"
        raise ConfigError(field, value, rule, "give the folder of the right ones, or another out=")
    write_file(description, json.dumps(stored | {"path": str(folder.path)}, indent=2).encode())


def compute_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _digest_of(folder: Path, shown: Callable[[BinaryIO, int], Iterator[bytes]]) -> str:
    """A hash of the configuration, and of each weight file's name, size, and what is `shown` of it."""
    digest = hashlib.sha256((folder / _CONFIG_NAME).read_bytes())
    for path in _weights(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for block in shown(file, size):
                digest.update(block)
    return digest.hexdigest()


def _head(file: BinaryIO, size: int) -> Iterator[bytes]:
    yield file.read(_HEAD_BYTES)


def _spread(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The head, the header whole where that is longer, and blocks over the rest of which the last one ends the file."""
    header = 8 + min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER_BYTES)
    begin = max(_HEAD_BYTES, header)
    file.seek(0)
    yield file.read(begin)
    last = size - _BLOCK_BYTES
    for number in range(_BLOCKS + 1):
        file.seek(max(begin, begin + (last - begin) * number // _BLOCKS))
        yield file.read(_BLOCK_BYTES)
