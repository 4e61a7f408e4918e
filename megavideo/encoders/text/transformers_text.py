"""A T5 or UMT5 text encoder of transformers, loaded from a local folder with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

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

_CONFIG_NAME = "transformers_text.json"
_PIPELINE_PART = "text_encoder"
_TOKENIZER_PART = "tokenizer"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model")
_BATCH = 8
_FIELD = "text_encoder.path"
# classes of transformers by `model_type`
TEXT_CLASSES = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}


@dataclass(frozen=True)
class _Stored(Stored):
    max_tokens: Size
    pad_to: Size | None = None


class TransformersTextEncoder:
    """`T5EncoderModel` or `UMT5EncoderModel`; the last hidden states of a caption's own tokens are its vectors.

    With `pad_to` zeros follow them up to that length, to which a model attends as to the others: Wan was trained with
    512 (`WanPipeline._get_t5_prompt_embeds` of diffusers).
    """

    def __init__(self, folder: PretrainedFolder, max_tokens: int, pad_to: int | None = None) -> None:
        self.folder = folder
        self.max_tokens = max_tokens
        self.pad_to = pad_to
        self.device = compute_device()
        self._tokenizer = open_tokenizer(tokenizer_place(folder.path))
        self._model = _load_model(folder).to(self.device)
        self.dim = text_width(folder)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """One tensor [L, dim] float32 a caption, as long as it is or `pad_to`; cut captions keep their end token."""
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
            vectors += [self._padded(hidden[index, : len(row)].float().cpu()) for index, row in enumerate(batch)]
        return vectors

    def count_tokens(self, caption: str) -> int:
        """Tokens of the whole caption, special ones too."""
        return max(1, len(self._tokenizer(caption, verbose=False).input_ids))

    def save(self, folder: Path) -> None:
        """Write transformers_text.json: where the weights are; they are not copied."""
        describe_transformers_text(folder, self.folder, self.max_tokens, self.pad_to)

    @classmethod
    def load(cls, folder: Path) -> TransformersTextEncoder:
        """Read what `save` wrote; DataError where it is damaged, or where the weights have gone or changed."""
        return cls(*kept_text_encoder(folder))

    def _padded(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors if self.pad_to is None else F.pad(vectors, (0, 0, 0, self.pad_to - len(vectors)))

    def _tokens(self, caption: str) -> list[int]:
        ids: list[int] = self._tokenizer(caption, truncation=True, max_length=self.max_tokens).input_ids
        if ids:
            return ids
        # A tokenizer without an end token gives nothing for the empty caption.
        pad = self._tokenizer.pad_token_id
        return [pad if pad is not None else 0]


def kept_text_encoder(folder: Path) -> tuple[PretrainedFolder, int, int | None]:
    """The folder of the weights, `max_tokens` and `pad_to`, as `TransformersTextEncoder.save` wrote them to `folder`.

    Raises as its `load` does.
    """
    path = folder / _CONFIG_NAME
    try:
        stored = read_json(path, _Stored)
    except (OSError, Refused) as error:
        raise DataError(f"{path}: damaged ({error}). Remedy: encode the dataset again") from error
    return reopen_pretrained(path, stored, _PIPELINE_PART), stored.max_tokens, stored.pad_to


def build_transformers_text(path: str | None, max_tokens: int, pad_to: int | None = None) -> TransformersTextEncoder:
    """Load encoder and tokenizer at `path`; ConfigError where the folder cannot be used."""
    return TransformersTextEncoder(open_transformers_text(path), max_tokens, pad_to)


def open_transformers_text(path: str | None) -> PretrainedFolder:
    """The folder of a text encoder, checked but not loaded; ConfigError where it is missing or has no weights."""
    return open_pretrained(_FIELD, path, _PIPELINE_PART)


def text_width(folder: PretrainedFolder) -> int:
    """Width of the encoder's vectors. Raises ConfigError where its config.json does not tell."""
    width = folder.config.get("d_model")
    if not isinstance(width, int):
        rule = "its config.json tells no d_model, the width of its vectors"
        raise ConfigError(_FIELD, str(folder.path), rule, "give a t5 or umt5 encoder")
    return width


def describe_transformers_text(folder: Path, weights: PretrainedFolder, max_tokens: int, pad_to: int | None) -> None:
    """Write to `folder` what `TransformersTextEncoder.load` reads; the weights are neither loaded nor copied."""
    description = {
        "path": str(weights.path),
        "fingerprint": weights.fingerprint,
        "dim": text_width(weights),
        "max_tokens": max_tokens,
        **({} if pad_to is None else {"pad_to": pad_to}),
    }
    write_file(folder / _CONFIG_NAME, json.dumps(description, indent=2).encode())


def move_transformers_text(folder: Path, path: str) -> None:
    """Have what `save` wrote to `folder` refer to the weights at `path`; ConfigError where these are others."""
    move_pretrained(folder / _CONFIG_NAME, _FIELD, path, _PIPELINE_PART)


def tokenizer_place(path: Path) -> Path:
    """The folder of the tokenizer of an encoder at `path`: itself, or the one beside it in a pipeline.

    Raises ConfigError where there is none.
    """
    beside = path.parent / _TOKENIZER_PART
    places = [place for place in (path, beside) if any((place / name).is_file() for name in _TOKENIZER_FILES)]
    if not places:
        raise ConfigError(
            _FIELD, str(path), f"it holds no tokenizer ({', '.join(_TOKENIZER_FILES)})", "save it beside the weights"
        )
    return places[0]


def open_tokenizer(place: Path) -> Any:
    """The tokenizer in a folder; ConfigError where transformers cannot load it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(place), local_files_only=True)
    except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            _FIELD, str(place), f"its tokenizer cannot be loaded: {error}", "save it again with save_pretrained"
        ) from error


def _load_model(folder: PretrainedFolder) -> Any:
    import transformers

    kind = folder.config.get("model_type")
    if kind not in TEXT_CLASSES:
        raise ConfigError(_FIELD, str(folder.path), f"it holds a model of type {kind}", "give a t5 or umt5 encoder")
    # These models overflow in float16; bfloat16 weights stay as they are.
    stored = folder.config.get("dtype") or folder.config.get("torch_dtype")
    dtype = torch.bfloat16 if stored == "bfloat16" else torch.float32
    try:
        model = getattr(transformers, TEXT_CLASSES[kind]).from_pretrained(
            str(folder.path), use_safetensors=True, local_files_only=True, dtype=dtype
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            _FIELD, str(folder.path), f"transformers cannot load it: {error}", "check the folder's files"
        ) from error
    return model.eval().requires_grad_(False)
