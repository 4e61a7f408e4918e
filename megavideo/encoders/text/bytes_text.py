"""The built-in text encoder: fixed, needs no training and no download, and is the same on every machine.

Each word and punctuation mark becomes one vector: hashed n-grams of its UTF-8 bytes (after fastText, Bojanowski et
al. 2017) plus a hash of the whole word, so that a word has the same vector wherever it stands and words of one stem are
near. A small sinusoid tells the place. The signs come straight from a hash function: no generator can change them.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval

from megavideo.border.fields import Size
from megavideo.border.json_text import read_json
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

_CONFIG_NAME = "bytes_text.json"
_LONGEST_NGRAM = 5
_WORD_WEIGHT = 1.0
_POSITION_AMPLITUDE = 0.1
_CACHED_WORDS = 65536
# One ideograph or syllable is a word; elsewhere a run of letters and digits, or one mark.
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+|[^\w\s]")
_END_OF_TEXT = "<end of text>"
_DIMS = (8, 65536)  # words cannot be told apart below; no model takes wider text


@dataclass(frozen=True)
class _Config:
    dim: Annotated[int, Interval(ge=_DIMS[0], le=_DIMS[1])]
    max_tokens: Size


class BytesTextEncoder:
    """Fixed text encoder; see the module. The last vector of a caption is the end-of-text vector."""

    def __init__(self, dim: int, max_tokens: int) -> None:
        if not _DIMS[0] <= dim <= _DIMS[1]:
            raise ConfigError("text_encoder.dim", dim, f"must lie in {_DIMS[0]}..{_DIMS[1]}", "give 128, for example")
        self.dim = dim
        self.max_tokens = max_tokens
        self._word_vector = lru_cache(maxsize=_CACHED_WORDS)(self._new_word_vector)

    def encode(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """One tensor [L, dim] a caption: its words and the end-of-text vector, of about unit root mean square."""
        return [self._encode_one(caption) for caption in captions]

    def count_tokens(self, caption: str) -> int:
        """Words and marks of the caption, and one for the end."""
        return len(_words(caption)) + 1

    def save(self, folder: Path) -> None:
        """Write bytes_text.json."""
        write_file(folder / _CONFIG_NAME, json.dumps({"dim": self.dim, "max_tokens": self.max_tokens}).encode())

    @classmethod
    def load(cls, folder: Path) -> BytesTextEncoder:
        """Read what `save` wrote; DataError where it is missing or damaged."""
        try:
            config = read_json(folder / _CONFIG_NAME, _Config)
            return cls(config.dim, config.max_tokens)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / _CONFIG_NAME}: damaged ({error}). Remedy: encode the dataset again") from error

    def _encode_one(self, caption: str) -> torch.Tensor:
        words = _words(caption)[: self.max_tokens - 1]
        vectors = np.stack([self._word_vector(word) for word in words] + [self._word_vector(_END_OF_TEXT)])
        places = _POSITION_AMPLITUDE * _sinusoids(len(vectors), self.dim)
        return torch.from_numpy((vectors + places).astype(np.float32))

    def _new_word_vector(self, word: str) -> np.ndarray:
        whole = self._signs(b"word", word.encode())
        if word == _END_OF_TEXT:
            return whole
        data = b"<" + word.encode() + b">"
        ngrams = {
            data[start : start + length]
            for length in range(1, _LONGEST_NGRAM + 1)
            for start in range(len(data) - length + 1)
        } - {b"<", b">"}
        # Whole numbers are summed, so that the order cannot matter.
        spelling = np.sum([self._signs(b"ngram", gram) for gram in sorted(ngrams)], axis=0)
        vector = spelling / _root_mean_square(spelling) + _WORD_WEIGHT * whole
        return np.asarray(vector / _root_mean_square(vector))

    def _signs(self, kind: bytes, data: bytes) -> np.ndarray:
        """A vector [dim] of +1 and -1 that depends on `kind` and `data` only."""
        digest = hashlib.shake_128(kind + b"\0" + data).digest((self.dim + 7) // 8)
        return np.unpackbits(np.frombuffer(digest, dtype=np.uint8), count=self.dim).astype(np.float64) * 2.0 - 1.0


def _words(caption: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", caption).lower())


def _root_mean_square(vector: np.ndarray) -> float:
    return float(np.sqrt(np.mean(vector * vector))) or 1.0


def _sinusoids(length: int, dim: int) -> np.ndarray:
    """Sines and cosines [length, dim] of the place (Vaswani et al. 2017)."""
    rates = 10000.0 ** (-np.arange((dim + 1) // 2) / ((dim + 1) // 2))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :dim]
