"""Encoders made from settings, and kept with a dataset so that its latents can be decoded and prompts encoded.

The folder holds `encoders.json` (which kinds) and the files of each encoder: JSON and safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from megavideo.border.json_text import parse_json, read_json
from megavideo.border.names import shown
from megavideo.border.refused import Refused
from megavideo.config.schema.prepare import AutoencoderConfig, ImageEncoderConfig, TextEncoderConfig
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.families import FAMILIES
from megavideo.encoders.image_encoder import (
    IMAGE_ENCODER_PART,
    IMAGE_KIND,
    ImageEncoder,
    build_image_encoder,
    move_image_encoder,
)
from megavideo.encoders.pretrained import PretrainedFolder
from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.encoders.text.encoder import TextEncoder
from megavideo.encoders.text.transformers_text import (
    TransformersTextEncoder,
    build_transformers_text,
    describe_transformers_text,
    move_transformers_text,
    open_transformers_text,
    text_width,
)
from megavideo.encoders.video.autoencoder import FitVideos, VideoAutoencoder
from megavideo.encoders.video.loaded import LoadedAutoencoder, build_loaded, loaded_ratios, move_loaded
from megavideo.encoders.video.pca import SPACE_RATIO, TIME_RATIO, PcaAutoencoder, fit_pca
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

DESCRIPTION_NAME = "encoders.json"
WAN_TEXT_TOKENS = 512  # to which Wan's text is cut and padded, in training and in sampling


@dataclass(frozen=True)
class Encoders:
    """The two encoders of a dataset, and that of images where the dataset has their embeddings."""

    autoencoder: VideoAutoencoder
    text_encoder: TextEncoder
    image_encoder: ImageEncoder | None = None


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
        return build_transformers_text(cfg.path, cfg.max_tokens, cfg.pad_to)
    if cfg.dim is None:
        raise ConfigError(
            "text_encoder.dim", None, "text_encoder.kind=bytes needs it", "give text_encoder.dim=128, for example"
        )
    return BytesTextEncoder(cfg.dim, cfg.max_tokens)


def save_encoders(
    folder: Path, autoencoder: VideoAutoencoder, text_encoder: TextEncoder, image_encoder: ImageEncoder | None = None
) -> None:
    """Write the encoders to `folder`."""
    autoencoder.save(folder)
    text_encoder.save(folder)
    if image_encoder is not None:
        image_encoder.save(folder)
    _write_kinds(folder, _kind_of(autoencoder), _kind_of(text_encoder), image_encoder)


@dataclass(frozen=True)
class PipelineEncoders:
    """The encoders in the folder of a pipeline of Wan; those of text and images, which are large, are not loaded."""

    autoencoder: LoadedAutoencoder
    text: PretrainedFolder
    image: ImageEncoder | None = None

    @classmethod
    def at(cls, pipeline: Path) -> PipelineEncoders | None:
        """None where the folder lacks a part but that of images. Raises ConfigError where one cannot be used."""
        if not all((pipeline / part).is_dir() for part in ("vae", "text_encoder", "tokenizer")):
            return None
        image = build_image_encoder(str(pipeline)) if (pipeline / IMAGE_ENCODER_PART).is_dir() else None
        return cls(build_loaded("wan", str(pipeline), "fp32", _no_clips), open_transformers_text(str(pipeline)), image)

    @property
    def text_dim(self) -> int:
        """Width of the text's vectors."""
        return text_width(self.text)

    def save(self, folder: Path) -> None:
        """Write them to `folder` as `load_encoders` reads them, with the padding of text that Wan was trained with."""
        self.autoencoder.save(folder)
        describe_transformers_text(folder, self.text, WAN_TEXT_TOKENS, WAN_TEXT_TOKENS)
        if self.image is not None:
            self.image.save(folder)
        _write_kinds(folder, self.autoencoder.kind, "transformers", self.image)


def _no_clips(count: int) -> list[torch.Tensor]:
    return []


def _write_kinds(folder: Path, autoencoder: str, text_encoder: str, image_encoder: ImageEncoder | None) -> None:
    kinds = {"format": 1, "autoencoder": autoencoder, "text_encoder": text_encoder}
    if image_encoder is not None:
        kinds["image_encoder"] = IMAGE_KIND
    write_file(folder / DESCRIPTION_NAME, json.dumps(kinds).encode())


def move_weights(
    folder: Path, autoencoder: AutoencoderConfig, text_encoder: TextEncoderConfig, image_encoder: ImageEncoderConfig
) -> None:
    """Have the encoders kept in `folder` load their weights from where the settings of the same kinds have them.

    Raises ConfigError where the weights there are others.
    """
    if autoencoder.path is not None:
        move_loaded(folder, autoencoder.kind, autoencoder.path)
    if text_encoder.path is not None:
        move_transformers_text(folder, text_encoder.path)
    if image_encoder.path is not None:
        move_image_encoder(folder, image_encoder.path)


def same_encoders(storage: Storage, prefix: str, folder: Path) -> bool:
    """Whether what a dataset keeps under `prefix` is what is in `folder`, if there is anything in it.

    Where the weights lie does not count: the fingerprint beside it tells which they are.
    """
    if not (folder / DESCRIPTION_NAME).exists():
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
        value = parse_json(content)
    except Refused:
        return content
    return {name: said for name, said in value.items() if name != "path"} if isinstance(value, dict) else value


def load_encoders(folder: Path) -> Encoders:
    """Read what `save_encoders` wrote; DataError where it is missing, damaged or refers to weights that have gone."""
    image = ImageEncoder.load(folder) if encoder_kinds(folder).image_encoder == IMAGE_KIND else None
    return Encoders(load_autoencoder(folder), load_text_encoder(folder), image)


def load_autoencoder(folder: Path) -> VideoAutoencoder:
    """The autoencoder alone; as `load_encoders` else."""
    return _AUTOENCODERS[encoder_kinds(folder).autoencoder](folder)


def load_text_encoder(folder: Path) -> TextEncoder:
    """The text encoder alone; as `load_encoders` else."""
    return _TEXT_ENCODERS[encoder_kinds(folder).text_encoder](folder)


@dataclass(frozen=True)
class EncoderKinds:
    """The kinds of the encoders, as the settings `autoencoder.kind` and `text_encoder.kind` name them.

    `image_encoder` is `clip_vision` where there is one.
    """

    autoencoder: str
    text_encoder: str
    image_encoder: str = "none"

    def __post_init__(self) -> None:
        """Raise Refused for one that is not known."""
        for which, kind, known in (
            ("autoencoder", self.autoencoder, _AUTOENCODERS),
            ("text_encoder", self.text_encoder, _TEXT_ENCODERS),
            ("image_encoder", self.image_encoder, ("none", IMAGE_KIND)),
        ):
            if kind not in known:
                raise Refused(f"{which} is {shown(kind)}, and known are {', '.join(known)}")


def encoder_kinds(folder: Path) -> EncoderKinds:
    """Which encoders `save_encoders` wrote to `folder`; DataError where what tells it is missing or damaged."""
    path = folder / DESCRIPTION_NAME
    try:
        return read_json(path, EncoderKinds)
    except (OSError, Refused) as error:
        raise DataError(f"{path}: missing or damaged ({error}). Remedy: encode the dataset again") from error


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
