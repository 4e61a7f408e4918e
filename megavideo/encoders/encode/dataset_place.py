"""The place of a dataset: what is fixed when its encoding begins, and clearing it.

`encode.json` is written before the first unit, after `encoders/` and `null_text.safetensors`: it holds the settings
that decide what a latent is, and the checksums of these files. Every process, and every later addition, uses them;
only the place of weights is each one's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megavideo.border.fields import Size
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.config.schema.prepare import EncodeRun, GivenTask
from megavideo.data.dataset.dataset import (
    DATASET_NAME,
    ENCODERS_PREFIX,
    INDEX_NAME,
    NULL_TEXT_NAME,
    checksum,
    null_text_bytes,
)
from megavideo.data.storage.files import checked_entry
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.open import open_storage
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.half import to_half
from megavideo.encoders.folder import Encoders, save_encoders
from megavideo.errors import ConfigError, DataError

ENCODE_NAME = "encode.json"
_FORMAT = 2
_FIXED = ("area", "max_frames", "fps", "patch", "given_latents", "autoencoder", "text_encoder", "image_encoder")
_OF_EACH_TASK = ("src", "store", "out", "workers", "shard", "overwrite")
# Deleted in this order: what makes a dataset of it first, what tells whose files these are last.
_CLEARED = (
    r"dataset\.json", r"dataset_v\d+\.json", r"index(_v\d+)?\.json", r"manifest(_v\d+)?\.jsonl", r"plans/.*",
    r"units/.*", r"shards/.*", r"shard\.\d{5}\.mds", r"null_text\.safetensors", r"encoders/.*",
    r"encode\.(json|unfinished)",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A place whose settings are fixed. `encoders` is a local folder with them; `key` stands for all that is fixed."""

    storage: Storage
    encoders: Path
    key: str
    latent_channels: int
    text_dim: int
    patch: tuple[int, int, int]
    time_ratio: int
    space_ratio: int
    null_text_checksum: str
    given_latents: tuple[GivenTask, ...] = ()
    image_dim: int | None = None


def check_place(cfg: EncodeRun) -> tuple[Storage, bool]:
    """The storage at `cfg.out`, and whether an encoding with these settings has begun there. Changes nothing.

    Raises ConfigError where it was begun with others, and DataError where files lie there that encode did not write.
    """
    storage = open_storage(cfg.out)
    if isinstance(storage, LocalStorage) and storage.folder.exists() and not storage.folder.is_dir():
        raise DataError(f"{cfg.out}: is a file, and a dataset is a folder. Remedy: give another out=")
    if storage.exists(ENCODE_NAME):
        if not cfg.overwrite:
            _check_settings(cfg, _read(storage).settings)
        return storage, not cfg.overwrite
    if storage.exists(DATASET_NAME):
        if cfg.overwrite:
            return storage, False
        raise DataError(
            f"{cfg.out}: holds a dataset of an older format, to which nothing can be added. "
            "Remedy: give another out=, or overwrite=true to replace it"
        )
    if storage.exists(INDEX_NAME) or any(name.endswith(".mds") for name in storage.list("shard")):
        raise DataError(
            f"{cfg.out}: holds shards that encode did not write. Remedy: give another out=, or move them away"
        )
    return storage, False


def begin_place(cfg: EncodeRun, storage: Storage, encoders: Encoders, folder: Path) -> Place:
    """Fix `encoders` and settings, after clearing what is to be overwritten; `folder` is an empty local one."""
    if cfg.overwrite:
        clear(storage)
    elif storage.exists(ENCODE_NAME):  # another task was faster
        return open_place(storage, folder)
    made = folder / "made"
    made.mkdir()
    image_encoder = encoders.image_encoder
    save_encoders(made, encoders.autoencoder, encoders.text_encoder, image_encoder)
    null_text = null_text_bytes(to_half(encoders.text_encoder.encode([""])[0]))
    content = {path.relative_to(made).as_posix(): path.read_bytes() for path in _files(made)}
    value = {
        "format": _FORMAT,
        "settings": _settings(cfg),
        "latent_channels": encoders.autoencoder.latent_channels,
        "text_dim": encoders.text_encoder.dim,
        "time_ratio": encoders.autoencoder.time_ratio,
        "space_ratio": encoders.autoencoder.space_ratio,
        "null_text": checksum(null_text),
        "encoders": {name: checksum(data) for name, data in content.items()},
        **({} if image_encoder is None else {"image_dim": image_encoder.dim}),
    }
    for name, data in content.items():
        storage.write_bytes(ENCODERS_PREFIX + name, data)
    storage.write_bytes(NULL_TEXT_NAME, null_text)
    storage.write_bytes(ENCODE_NAME, (json.dumps(value, indent=2) + "\n").encode())
    return open_place(storage, folder)


def open_place(storage: Storage, folder: Path) -> Place:
    """The place as it was begun, with its encoders copied to `folder`; DataError where they are not the same any more.

    Of two tasks that begin one place at once the last counts: a unit of the other one carries another key.
    """
    begun = _read(storage)
    local = folder / "encoders"
    try:
        for name, expected in begun.encoders.items():
            place = checked_entry(local, name)
            storage.download(ENCODERS_PREFIX + name, place)
            if checksum(place.read_bytes()) != expected:
                raise _damaged(storage, ENCODERS_PREFIX + name, f"its checksum is not the one in {ENCODE_NAME}")
        return Place(
            storage=storage,
            encoders=local,
            key=begun.key,
            latent_channels=begun.latent_channels,
            text_dim=begun.text_dim,
            patch=begun.patch,
            time_ratio=begun.time_ratio,
            space_ratio=begun.space_ratio,
            null_text_checksum=begun.null_text,
            given_latents=begun.given_latents,
            image_dim=begun.image_dim,
        )
    except Refused as error:
        raise _damaged(storage, ENCODE_NAME, error) from error


def clear(storage: Storage) -> None:
    """Delete what encode wrote, and nothing else."""
    names = storage.list()
    for pattern in _CLEARED:
        for name in names:
            if re.fullmatch(pattern, name):
                storage.delete(name)


def _check_settings(cfg: EncodeRun, before: dict[str, Any]) -> None:
    for name, old, new in _differences("", before, _settings(cfg)):
        if name.endswith(".path") and old is not None and new is not None:
            continue  # weights may be moved: which they are is looked at as they are opened
        # a kind comes with its group, and a value as the command line takes it: null, and no space
        word = f"{name.removesuffix('.kind')}={old if isinstance(old, str) else json.dumps(old, separators=(',', ':'))}"
        raise ConfigError(
            name,
            new,
            f"{cfg.out} holds a dataset that was begun with {json.dumps(old)}",
            f"give {word} to add to it, give another out=, or overwrite=true to replace it",
        )


def _settings(cfg: EncodeRun) -> dict[str, Any]:
    values = asdict(cfg)
    return parse_json(json.dumps({name: values[name] for name in _FIXED}), dict[str, Any])


def planned_settings(cfg: EncodeRun) -> dict[str, Any]:
    """What must be the same for processes that share the work: all that units depend on, but not where weights are."""
    return {
        name: {key: item for key, item in value.items() if key != "path"} if isinstance(value, dict) else value
        for name, value in asdict(cfg).items()
        if name not in _OF_EACH_TASK
    }


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    old = {} if old is None and isinstance(new, dict) else old  # of a time when there were no such settings
    if isinstance(old, dict) and isinstance(new, dict):
        for name in new:
            yield from _differences(f"{path}.{name}" if path else name, old.get(name), new[name])
    elif old != new:
        yield path, old, new


@dataclass(frozen=True)
class _Begun:
    """What `encode.json` holds."""

    format: int
    settings: dict[str, Any]
    latent_channels: Size
    text_dim: Size
    time_ratio: Size
    space_ratio: Size
    null_text: str
    encoders: dict[str, str]
    image_dim: Size | None = None

    @property
    def patch(self) -> tuple[int, int, int]:
        """Raises Refused where the settings have none."""
        return parse_json(json.dumps(self.settings.get("patch")), tuple[Size, Size, Size])

    @property
    def given_latents(self) -> tuple[GivenTask, ...]:
        """None in settings of a time when there were none; Refused for a task that is not known."""
        return parse_json(json.dumps(self.settings.get("given_latents") or ()), tuple[GivenTask, ...])

    @property
    def key(self) -> str:
        fixed = {"settings": self.settings, "null_text": self.null_text, "encoders": self.encoders}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _read(storage: Storage) -> _Begun:
    try:
        begun = parse_json(storage.read_bytes(ENCODE_NAME), _Begun)
        if begun.format != _FORMAT:
            raise Refused(f"format {begun.format}, and this version reads {_FORMAT}")
    except Refused as error:
        raise _damaged(storage, ENCODE_NAME, error) from error
    return begun


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _damaged(storage: Storage, name: str, reason: object) -> DataError:
    return DataError(
        f"{storage.uri}/{name}: damaged ({reason}). Remedy: restore it from a copy, or encode again with overwrite=true"
    )
