"""Folders of models that score clips: checked without loading them, and loaded when the first clip is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from megavideo.encoders.pretrained import PretrainedFolder, compute_device, open_pretrained
from megavideo.errors import ConfigError

_UNLOADABLE = (OSError, ValueError, RuntimeError, ImportError, TypeError, KeyError, AttributeError, SafetensorError)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What beside the weights decides what a model gives.
_BESIDE = ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
           "merges.txt", "spiece.model")  # fmt: skip


@dataclass(frozen=True)
class ModelFolder:
    """A checked folder, named by the setting `field`; its model runs on `device`.

    `key` changes with its weights, and with what prepares pictures and texts for it.
    """

    field: str
    folder: PretrainedFolder
    device: torch.device

    @property
    def key(self) -> str:
        """A hash of all that decides what the model gives."""
        digest = hashlib.sha256(self.folder.fingerprint.encode())
        for name in _BESIDE:
            path = self.folder.path / name
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()[:32]

    @property
    def kind(self) -> str:
        """The type of the model by its configuration."""
        return str(self.folder.config.get("model_type"))

    def image_processor(self) -> Any:
        """What makes pictures into the model's input."""
        from transformers import AutoImageProcessor

        return self._loaded(AutoImageProcessor.from_pretrained, "its image processor")

    def tokenizer(self) -> Any:
        """What makes texts into the model's input."""
        from transformers import AutoTokenizer

        return self._loaded(AutoTokenizer.from_pretrained, "its tokenizer")

    def model(self, auto: Any) -> Any:
        """The model by a class of transformers, in fp32 on the device."""

        def load(path: str, **options: Any) -> Any:
            return auto.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **options)

        return self._loaded(load, "its weights").eval().requires_grad_(False).to(self.device)

    def moved(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Tensors on the model's device."""
        return {name: value.to(self.device) for name, value in inputs.items()}

    def refuse(self, rule: str, remedy: str) -> ConfigError:
        """The error for a folder that cannot serve."""
        return ConfigError(self.field, str(self.folder.path), rule, remedy)

    def _loaded(self, load: Callable[..., Any], what: str) -> Any:
        try:
            return load(str(self.folder.path), local_files_only=True, trust_remote_code=False)
        except _UNLOADABLE as error:
            rule = f"{what} (of a model of type {self.kind}) cannot be loaded: {_first_line(error)}"
            raise self.refuse(rule, "check the folder's files and its kind") from error


def open_model(section: str, value: str | None, device: str) -> ModelFolder:
    """The folder that `section.folder` names; ConfigError where it cannot serve, and for a GPU that is not there."""
    field = f"{section}.folder"
    path = Path(value or "").expanduser()
    if value and path.is_dir() and not any(path.glob("*.safetensors")):
        pickled = sorted(found.name for found in path.iterdir() if found.suffix in _PICKLES)
        if pickled:
            rule = f"its weights are pickles ({pickled[0]}), which may run any code and are never loaded"
            remedy = "load them where they are trusted, and save them with save_pretrained(safe_serialization=True)"
            raise ConfigError(field, value, rule, remedy)
    return ModelFolder(field, open_pretrained(field, value, ""), choose_device(device))


def choose_device(asked: str) -> torch.device:
    """The device of `scores.device`. ConfigError for a GPU that is not there."""
    if asked == "auto":
        return compute_device()
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("scores.device", asked, "there is no GPU here", "take scores.device=auto, or cpu")
    return torch.device(asked)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
