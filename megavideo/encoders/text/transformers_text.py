"""A T5 or UMT5 text encoder of transformers, loaded from a local folder with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megavideo.encoders.pretrained import (
    PretrainedFolder,
    compute_device,
    move_pretrained,
    open_pretrained,
    reopen_pretrained,
)
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

_CONFIG_NAME = "transformers_text.json"
_PIPELINE_PART = "text_encoder"
_TOKENIZER_PART = "tokenizer"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model")
_BATCH = 8
_FIELD = "text_encoder.path"


class TransformersTextEncoder:
    """`T5EncoderModel` or `UMT5EncoderModel`; the last hidden states of a caption's own tokens are its vectors."""

    def __init__(self, folder: PretrainedFolder, max_tokens: int) -> None:
        self.folder = folder
        self.max_tokens = max_tokens
        self.device = compute_device()
        self._tokenizer = _load_tokenizer(folder.path)
        self._model = _load_model(folder).to(self.device)
        self.dim = int(self._model.config.d_model)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """One tensor [L, dim] float32 a caption, without padding; cut captions keep their end token."""
        tokens = [self._tokens(caption) for caption in captions]
        vectors: list[torch.Tensor] = []
        for begin in range(0, len(tokens), _BATCH):
            batch = tokens[begin : begin + _BATCH]
            longest = max(len(row) for row in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros(len(batch), longest, dtype=torch.long)
            for index, row in enumerate(batch):
                ids[index, : len(row)] = torch.tensor(row)
                mask[index, : len(row)] = 1
            hidden = self._model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
            vectors += [hidden[index, : len(row)].float().cpu() for index, row in enumerate(batch)]
        return vectors

    def count_tokens(self, caption: str) -> int:
        """Tokens of the whole caption, special ones too."""
        return max(1, len(self._tokenizer(caption, verbose=False).input_ids))

    def save(self, folder: Path) -> None:
        """Write transformers_text.json: where the weights are; they are not copied."""
        description = {
            "path": str(self.folder.path),
            "fingerprint": self.folder.fingerprint,
            "dim": self.dim,
            "max_tokens": self.max_tokens,
        }
        write_file(folder / _CONFIG_NAME, json.dumps(description, indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> TransformersTextEncoder:
        """Read what `save` wrote; DataError where it is damaged, or where the weights have gone or changed."""
        path = folder / _CONFIG_NAME
        try:
            stored = json.loads(path.read_bytes())
            max_tokens = int(stored["max_tokens"])
            stored["path"], stored["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged ({error}). Remedy: encode the dataset again") from error
        return cls(reopen_pretrained(path, stored, _PIPELINE_PART), max_tokens)

    def _tokens(self, caption: str) -> list[int]:
        ids: list[int] = self._tokenizer(caption, truncation=True, max_length=self.max_tokens).input_ids
        if ids:
            return ids
        # A tokenizer without an end token gives nothing for the empty caption.
        pad = self._tokenizer.pad_token_id
        return [pad if pad is not None else 0]


def build_transformers_text(path: str | None, max_tokens: int) -> TransformersTextEncoder:
    """Load encoder and tokenizer at `path`; ConfigError where the folder cannot be used."""
    return TransformersTextEncoder(open_pretrained(_FIELD, path, _PIPELINE_PART), max_tokens)


def move_transformers_text(folder: Path, path: str) -> None:
    """Have what `save` wrote to `folder` refer to the weights at `path`; ConfigError where these are others."""
    move_pretrained(folder / _CONFIG_NAME, _FIELD, path, _PIPELINE_PART)


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    beside = path.parent / _TOKENIZER_PART
    places = [place for place in (path, beside) if any((place / name).is_file() for name in _TOKENIZER_FILES)]
    if not places:
        raise ConfigError(
            _FIELD, str(path), f"it holds no tokenizer ({', '.join(_TOKENIZER_FILES)})", "save it beside the weights"
        )
    place = places[0]
    try:
        return AutoTokenizer.from_pretrained(str(place), local_files_only=True)
    except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            _FIELD, str(place), f"its tokenizer cannot be loaded: {error}", "save it again with save_pretrained"
        ) from error


def _load_model(folder: PretrainedFolder) -> Any:
    from transformers import T5EncoderModel, UMT5EncoderModel

    classes = {"t5": T5EncoderModel, "umt5": UMT5EncoderModel}
    kind = folder.config.get("model_type")
    if kind not in classes:
        raise ConfigError(_FIELD, str(folder.path), f"it holds a model of type {kind}", "give a t5 or umt5 encoder")
    # These models overflow in float16; bfloat16 weights stay as they are.
    stored = folder.config.get("dtype") or folder.config.get("torch_dtype")
    dtype = torch.bfloat16 if stored == "bfloat16" else torch.float32
    try:
        model = classes[kind].from_pretrained(
            str(folder.path), use_safetensors=True, local_files_only=True, dtype=dtype
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            _FIELD, str(folder.path), f"transformers cannot load it: {error}", "check the folder's files"
        ) from error
    return model.eval().requires_grad_(False)
