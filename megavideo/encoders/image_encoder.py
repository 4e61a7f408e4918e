"""The vision model of a CLIP, of whose hidden states Wan 2.1's image-to-video models are told the next to last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavideo.border.fields import Size
from megavideo.border.json_text import read_json
from megavideo.border.refused import Refused
from megavideo.encoders.pretrained import (
    PretrainedFolder,
    Stored,
    compute_device,
    move_pretrained,
    open_pretrained,
    reopen_pretrained,
)
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

IMAGE_ENCODER_PART, IMAGE_PROCESSOR_PART = "image_encoder", "image_processor"
PROCESSOR_FILE = "preprocessor_config.json"
IMAGE_KIND = "clip_vision"
_CONFIG_NAME = "clip_vision.json"
_FIELD = "image_encoder.path"
_MODEL_TYPE = "clip_vision_model"
_UNLOADABLE = (OSError, ValueError, RuntimeError, ImportError, TypeError, KeyError, AttributeError)


@dataclass(frozen=True)
class _Stored(Stored):
    dim: Size
    processor: dict[str, Any]


class ImageEncoder:
    """`CLIPVisionModel` in fp32, loaded when it is first needed, with the settings of its `CLIPImageProcessor`.

    Shape legend: I rows of an embedding (a patch of the image each, and one of the whole), E their width `dim`.
    """

    def __init__(self, folder: PretrainedFolder, processor: dict[str, Any]) -> None:
        self.folder = folder
        self.processor = processor
        self.dim = _width(folder)
        self.device = compute_device()

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> torch.Tensor:
        """The embedding [I, E], float32, of an image, uint8 [H, W, 3]: as `WanImageToVideoPipeline.encode_image`."""
        inputs = self._processor(images=[pixels], return_tensors="pt")["pixel_values"].to(self.device)
        states = self._model(pixel_values=inputs, output_hidden_states=True).hidden_states
        found: torch.Tensor = states[-2][0].float().cpu()
        return found

    def save(self, folder: Path) -> None:
        """Write clip_vision.json: where the weights are, which are not copied, and how images are prepared."""
        description = {
            "path": str(self.folder.path),
            "fingerprint": self.folder.fingerprint,
            "dim": self.dim,
            "processor": self.processor,
        }
        write_file(folder / _CONFIG_NAME, json.dumps(description, indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> ImageEncoder:
        """Read what `save` wrote; DataError where it is damaged, or where the weights have gone or changed."""
        path = folder / _CONFIG_NAME
        try:
            stored = read_json(path, _Stored)
        except (OSError, Refused) as error:
            raise DataError(f"{path}: damaged ({error}). Remedy: encode the dataset again") from error
        return cls(reopen_pretrained(path, stored, IMAGE_ENCODER_PART), stored.processor)

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPVisionModel

        path = str(self.folder.path)
        try:
            model: Any = CLIPVisionModel.from_pretrained(
                path, use_safetensors=True, local_files_only=True, dtype=torch.float32
            )
        except _UNLOADABLE as error:
            rule = f"transformers cannot load it: {error}"
            raise ConfigError(_FIELD, path, rule, "check the folder's files") from error
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def _processor(self) -> Any:
        from transformers import CLIPImageProcessor

        try:
            return CLIPImageProcessor.from_dict(self.processor)
        except _UNLOADABLE as error:
            rule = f"its {PROCESSOR_FILE} makes no CLIPImageProcessor: {error}"
            raise ConfigError(_FIELD, str(self.folder.path), rule, "save it again with save_pretrained") from error


def build_image_encoder(path: str) -> ImageEncoder:
    """The encoder at `path`, a pipeline's folder, its `image_encoder`, or one that has its image processor inside.

    Raises ConfigError where the folder cannot be used.
    """
    folder = open_pretrained(_FIELD, path, IMAGE_ENCODER_PART)
    places = [folder.path / PROCESSOR_FILE, folder.path.parent / IMAGE_PROCESSOR_PART / PROCESSOR_FILE]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        rule = f"no {PROCESSOR_FILE} is in it, nor in a folder {IMAGE_PROCESSOR_PART} beside it"
        raise ConfigError(_FIELD, str(folder.path), rule, "save the CLIPImageProcessor beside the weights")
    try:
        processor = read_json(found, dict[str, Any])
    except (OSError, Refused) as error:
        rule = f"its {PROCESSOR_FILE} cannot be read ({error})"
        raise ConfigError(_FIELD, str(folder.path), rule, "save it again with save_pretrained") from error
    return ImageEncoder(folder, processor)


def move_image_encoder(folder: Path, path: str) -> None:
    """Have what `save` wrote to `folder` refer to the weights at `path`; ConfigError where these are others."""
    move_pretrained(folder / _CONFIG_NAME, _FIELD, path, IMAGE_ENCODER_PART)


def _width(folder: PretrainedFolder) -> int:
    kind, width = folder.config.get("model_type"), folder.config.get("hidden_size")
    if kind != _MODEL_TYPE or not isinstance(width, int):
        rule = f"it holds a model of type {kind} with hidden_size {width}, and a {_MODEL_TYPE} is needed"
        raise ConfigError(_FIELD, str(folder.path), rule, "give the image_encoder of a pipeline of Wan 2.1")
    return width
