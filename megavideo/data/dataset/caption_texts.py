"""Several encoded captions of one sample in one row of a shard.

The texts stand one after the other in the column `text` [L1 + L2 + ..., text_dim]; `text_lengths` [A] says where each
ends and `text_weights` [A] how often it is drawn. A row without these two holds one text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Columns beside `text`, with their MDS encodings.
CAPTION_COLUMNS = {"text_lengths": "ndarray:int32", "text_weights": "ndarray:float64"}


def join_texts(texts: Sequence[np.ndarray], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """The columns `text`, `text_lengths` and `text_weights` of the texts [L, text_dim] of one sample."""
    if not texts or len(texts) != len(weights):
        raise ValueError(f"{len(texts)} texts and {len(weights)} weights are no set of captions")
    return {
        "text": np.ascontiguousarray(np.concatenate(texts)),
        "text_lengths": np.asarray([len(text) for text in texts], np.int32),
        "text_weights": np.asarray(weights, np.float64),
    }


def split_texts(row: Mapping[str, Any]) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """The texts [L, text_dim] of a row and their weights. Raises ValueError where the columns contradict each other."""
    text: np.ndarray = row["text"]
    if "text_lengths" not in row:
        return [text], (1.0,)
    lengths, weights = row["text_lengths"], row["text_weights"]
    if (
        lengths.ndim != 1 or lengths.shape != weights.shape or not lengths.size or lengths.min() < 1
        or lengths.sum(dtype=np.int64) != len(text) or not (np.isfinite(weights) & (weights >= 0)).all()
    ):  # fmt: skip
        raise ValueError(
            f"{len(text)} text tokens, lengths {lengths.shape} and weights {weights.shape} contradict each other"
        )
    return np.split(text, np.cumsum(lengths)[:-1]), tuple(weights.tolist())
