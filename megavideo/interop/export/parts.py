"""The pretrained parts of a pipeline: autoencoder, encoders and tokenizer that a run's dataset was made with."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megavideo.config.schema.export import PartsConfig
from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import ENCODERS_PREFIX
from megavideo.data.storage.open import download_all, open_storage
from megavideo.encoders.families import FAMILIES
from megavideo.encoders.folder import DESCRIPTION_NAME, WAN_TEXT_TOKENS, EncoderKinds, encoder_kinds
from megavideo.encoders.image_encoder import (
    IMAGE_ENCODER_PART,
    IMAGE_PROCESSOR_PART,
    PROCESSOR_FILE,
    ImageEncoder,
)
from megavideo.encoders.pretrained import PretrainedFolder
from megavideo.encoders.text.transformers_text import TEXT_CLASSES, kept_text_encoder, open_tokenizer, tokenizer_place
from megavideo.encoders.video.loaded import kept_autoencoder
from megavideo.errors import ConfigError, DataError
from megavideo.interop.export.output import write_json
from megavideo.interop.export.source import ExportSource

_WAN_TIME_RATIO = 4
_CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model")


@dataclass(frozen=True)
class Part:
    """A folder of a pipeline: `files` that are copied, or linked, and a `config` where that is not the one there.

    It is written as `config_name`.
    """

    name: str
    library: str
    class_name: str
    files: tuple[Path, ...]
    linked: bool
    config: Mapping[str, object] | None = None
    config_name: str = _CONFIG

    @property
    def num_bytes(self) -> int:
        """Of what is copied."""
        return 0 if self.linked else sum(path.stat().st_size for path in self.files)

    def write(self, folder: Path, on_bytes: Callable[[int], None]) -> None:
        """Make the folder; `on_bytes` is told of each file that is copied. Raises OSError where the disk refuses."""
        folder.mkdir()
        for path in self.files:
            if self.linked:
                os.symlink(path.resolve(), folder / path.name)
                continue
            shutil.copyfile(path, folder / path.name)
            on_bytes(path.stat().st_size)
        if self.config is not None:
            write_json(folder / self.config_name, self.config)


@dataclass(frozen=True)
class RunEncoders:
    """The folder that a run keeps its encoders in, and which they are; None where no part of them is exported."""

    folder: Path
    kinds: EncoderKinds | None

    @property
    def time_ratio(self) -> int:
        """Frames to a latent frame of a pipeline with the run's autoencoder; without one pipelines take Wan's."""
        if self.kinds is None or self.kinds.autoencoder != "wan":
            return _WAN_TIME_RATIO
        return FAMILIES["wan"].ratios(kept_autoencoder(self.folder, "wan").folder.config)[0]

    @property
    def unpadded_tokens(self) -> int | None:
        """Up to how many tokens of a prompt the run was trained on, where no zeros as those of Wan stood behind them.

        None where they did, or the text encoder is not pretrained.
        """
        if self.kinds is None or self.kinds.text_encoder != "transformers":
            return None
        _, max_tokens, pad_to = kept_text_encoder(self.folder)
        return None if pad_to == WAN_TEXT_TOKENS else max_tokens


@contextmanager
def run_encoders(source: ExportSource, parts: PartsConfig) -> Iterator[RunEncoders]:
    """The encoders of the run folder of a checkpoint, or of its dataset where it lies elsewhere, as in a store.

    Raises DataError where they are in neither.
    """
    here = source.folder.parent.parent / "encoders"
    if parts == PartsConfig(vae="none", text_encoder="none", tokenizer="none", image_encoder="none"):
        yield RunEncoders(here, None)
        return
    if (here / DESCRIPTION_NAME).is_file():
        yield RunEncoders(here, encoder_kinds(here))
        return
    uri = source.config.data.uri
    with tempfile.TemporaryDirectory(prefix="megavideo-encoders-") as temporary:
        folder = Path(temporary)
        download_all(open_storage(uri), ENCODERS_PREFIX, folder)
        if not (folder / DESCRIPTION_NAME).is_file():
            raise DataError(
                f"{here}: no {DESCRIPTION_NAME}, nor has the run's dataset {uri} one. Remedy: restore either from a "
                "copy, or take format=transformer, which needs no encoders"
            )
        yield RunEncoders(folder, encoder_kinds(folder))


def plan_parts(asked: PartsConfig, run: TrainRun, encoders: RunEncoders) -> tuple[Part, ...]:
    """Those that are asked for.

    Raises ConfigError for encoders that no Wan pipeline has, DataError for weights that have gone or are of another
    number of channels than the model.
    """
    if encoders.kinds is None:
        return ()
    parts = []
    if asked.vae != "none":
        parts.append(_vae(asked.vae == "link", run, encoders.folder, encoders.kinds.autoencoder))
    for name, how, planned in (
        ("text_encoder", asked.text_encoder, _text_encoder),
        ("tokenizer", asked.tokenizer, _tokenizer),
    ):
        if how != "none":
            _check_text_kind(encoders.kinds.text_encoder)
            parts.append(planned(name, how == "link", kept_text_encoder(encoders.folder)[0]))
    if run.model.image_dim is not None and asked.image_encoder != "none":
        parts += _image_encoder(asked.image_encoder == "link", run.model.image_dim, encoders)
    return tuple(parts)


def _image_encoder(linked: bool, width: int, encoders: RunEncoders) -> tuple[Part, Part]:
    """It and its processor."""
    if encoders.kinds is None or encoders.kinds.image_encoder == "none":
        rule = f"the run keeps no encoder of images, of whose embeddings its model is told (model.image_dim={width})"
        raise ConfigError("parts.image_encoder", "copy", rule, "take parts.image_encoder=none")
    kept = ImageEncoder.load(encoders.folder)
    files = _files(kept.folder.path, (_CONFIG, *_WEIGHTS))
    return (
        Part(IMAGE_ENCODER_PART, "transformers", "CLIPVisionModel", files, linked),
        Part(
            IMAGE_PROCESSOR_PART, "transformers", "CLIPImageProcessor", (), linked, kept.processor, PROCESSOR_FILE
        ),
    )  # fmt: skip


def _vae(linked: bool, run: TrainRun, folder: Path, kind: str) -> Part:
    if kind != "wan":
        raise ConfigError(
            "autoencoder.kind",
            kind,
            "the run's latents are decoded by it, and a Wan pipeline decodes with AutoencoderKLWan alone",
            "take parts.vae=none, and decode the pipeline's latents by yourself, or format=transformer",
        )
    kept = kept_autoencoder(folder, kind)
    family, config = FAMILIES[kind], kept.folder.config
    channels = len(kept.statistics.mean)
    if channels != run.model.latent_channels:
        raise DataError(
            f"{kept.folder.path}: has latents of {channels} channels, and the model of the run takes "
            f"{run.model.latent_channels}. Remedy: put back the run's own folder encoders, or take format=transformer"
        )
    time_ratio, space_ratio = family.ratios(config)
    # the statistics by which the dataset was standardised, which may have been measured
    of_run = {"latents_mean": kept.statistics.mean.tolist(), "latents_std": kept.statistics.std.tolist()}
    ratios = {"scale_factor_temporal": time_ratio, "scale_factor_spatial": space_ratio}
    files = _files(kept.folder.path, _WEIGHTS)
    return Part("vae", "diffusers", family.class_name, files, linked, {**config, **ratios, **of_run})


def _check_text_kind(kind: str) -> None:
    if kind != "transformers":
        raise ConfigError(
            "text_encoder.kind",
            kind,
            "the run was trained on its vectors, and a Wan pipeline encodes prompts with T5 or UMT5 alone",
            "take parts.text_encoder=none parts.tokenizer=none, and give the pipeline prompts encoded by yourself, "
            "or format=transformer",
        )


def _text_encoder(name: str, linked: bool, kept: PretrainedFolder) -> Part:
    class_name = TEXT_CLASSES[str(kept.config["model_type"])]
    return Part(name, "transformers", class_name, _files(kept.path, (_CONFIG, *_WEIGHTS)), linked)


def _tokenizer(name: str, linked: bool, kept: PretrainedFolder) -> Part:
    place = tokenizer_place(kept.path)
    return Part(name, "transformers", type(open_tokenizer(place)).__name__, _files(place, _TOKENIZER), linked)


def _files(folder: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}))
