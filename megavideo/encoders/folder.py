"""Encoders made from settings, and kept with a dataset so that its latents can be decoded and prompts encoded.

The folder holds `encoders.json` (which kinds) and the files of each encoder: JSON and safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from megavideo.config.schema.prepare import AutoencoderConfig, TextEncoderConfig
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.families import FAMILIES
from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.encoders.text.encoder import TextEncoder
from megavideo.encoders.text.transformers_text import (
    TransformersTextEncoder,
    build_transformers_text,
    move_transformers_text,
)
from megavideo.encoders.video.autoencoder import FitVideos, VideoAutoencoder
from megavideo.encoders.video.loaded import LoadedAutoencoder, build_loaded, loaded_ratios, move_loaded
from megavideo.encoders.video.pca import SPACE_RATIO, TIME_RATIO, PcaAutoencoder, fit_pca
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

_CONFIG_NAME = "encoders.json"
_Encoder = TypeVar("_Encoder")


@dataclass(frozen=True)
class Encoders:
    """The two encoders of a dataset."""

    autoencoder: VideoAutoencoder
    text_encoder: TextEncoder


def build_autoencoder(cfg: AutoencoderConfig, fit_videos: FitVideos) -> VideoAutoencoder:
    """Make the autoencoder of the settings, fitted where its kind needs that.

    `fit_videos(n)` gives up to n clips of the dataset. Raises ConfigError on settings that cannot be used.
    """
    if cfg.kind != "pca":
        return build_loaded(cfg.kind, cfg.path, cfg.precision, fit_videos, cfg.tile)
    if cfg.precision != "fp32":
        raise ConfigError(
            "autoencoder.precision",
            cfg.precision,
            "has no effect on autoencoder.kind=pca, which computes in fp32",
            "leave it out",
        )
    return fit_pca(_required("channels", cfg.channels), _required("fit_clips", cfg.fit_clips), fit_videos)


def autoencoder_ratios(cfg: AutoencoderConfig) -> tuple[int, int]:
    """Time and space ratio of the autoencoder that `build_autoencoder` would make, without loading weights."""
    return (TIME_RATIO, SPACE_RATIO) if cfg.kind == "pca" else loaded_ratios(cfg.kind, cfg.path)


def build_text_encoder(cfg: TextEncoderConfig) -> TextEncoder:
    """Make the text encoder of the settings; ConfigError on settings that cannot be used."""
    if cfg.kind == "transformers":
        return build_transformers_text(cfg.path, cfg.max_tokens)
    if cfg.dim is None:
        raise ConfigError(
            "text_encoder.dim", None, "text_encoder.kind=bytes needs it", "give text_encoder.dim=128, for example"
        )
    return BytesTextEncoder(cfg.dim, cfg.max_tokens)


def save_encoders(folder: Path, autoencoder: VideoAutoencoder, text_encoder: TextEncoder) -> None:
    """Write both encoders to `folder`."""
    autoencoder.save(folder)
    text_encoder.save(folder)
    kinds = {"format": 1, "autoencoder": _kind_of(autoencoder), "text_encoder": _kind_of(text_encoder)}
    write_file(folder / _CONFIG_NAME, json.dumps(kinds).encode())


def move_weights(folder: Path, autoencoder: AutoencoderConfig, text_encoder: TextEncoderConfig) -> None:
    """Have the encoders kept in `folder` load their weights from where the settings of the same kinds have them.

    Raises ConfigError where the weights there are others.
    """
    if autoencoder.path is not None:
        move_loaded(folder, autoencoder.kind, autoencoder.path)
    if text_encoder.path is not None:
        move_transformers_text(folder, text_encoder.path)


def same_encoders(storage: Storage, prefix: str, folder: Path) -> bool:
    """Whether what a dataset keeps under `prefix` is what is in `folder`, if there is anything in it.

    Where the weights lie does not count: the fingerprint beside it tells which they are.
    """
    if not (folder / _CONFIG_NAME).exists():
        return True
    names = storage.list(prefix)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return files == {name.removeprefix(prefix) for name in names} and all(
        _without_path(storage.read_bytes(name)) == _without_path((folder / name.removeprefix(prefix)).read_bytes())
        for name in names
    )


def _without_path(content: bytes) -> object:
    """The content of an encoder's file; of a JSON object what it says beside `path`."""
    try:
        value = json.loads(content)
    except ValueError:
        return content
    return {name: said for name, said in value.items() if name != "path"} if isinstance(value, dict) else value


def load_encoders(folder: Path) -> Encoders:
    """Read what `save_encoders` wrote; DataError where it is missing, damaged or refers to weights that have gone."""
    return Encoders(load_autoencoder(folder), load_text_encoder(folder))


def load_autoencoder(folder: Path) -> VideoAutoencoder:
    """The autoencoder alone; as `load_encoders` else."""
    return _loaded(folder, "autoencoder", _AUTOENCODERS)


def load_text_encoder(folder: Path) -> TextEncoder:
    """The text encoder alone; as `load_encoders` else."""
    return _loaded(folder, "text_encoder", _TEXT_ENCODERS)


def _loaded(folder: Path, which: str, loaders: Mapping[str, Callable[[Path], _Encoder]]) -> _Encoder:
    path = folder / _CONFIG_NAME
    try:
        load = loaders[json.loads(path.read_bytes())[which]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: missing or damaged ({error}). Remedy: encode the dataset again") from error
    return load(folder)


_AUTOENCODERS: dict[str, Callable[[Path], VideoAutoencoder]] = {
    "pca": PcaAutoencoder.load,
    **{kind: partial(LoadedAutoencoder.load, kind=kind) for kind in FAMILIES},
}
_TEXT_ENCODERS: dict[str, Callable[[Path], TextEncoder]] = {
    "bytes": BytesTextEncoder.load,
    "transformers": TransformersTextEncoder.load,
}
_KINDS: dict[type, str] = {
    PcaAutoencoder: "pca",
    BytesTextEncoder: "bytes",
    TransformersTextEncoder: "transformers",
}


def _kind_of(encoder: VideoAutoencoder | TextEncoder) -> str:
    return encoder.kind if isinstance(encoder, LoadedAutoencoder) else _KINDS[type(encoder)]


def _required(name: str, value: int | None) -> int:
    if value is None:
        raise ConfigError(
            f"autoencoder.{name}", None, "autoencoder.kind=pca needs it", f"give autoencoder.{name}=16, for example"
        )
    return value
