"""Several texts of a sample go through a real shard and come back, and rows of one text are still read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.format.mds.reader import MDSReader

from megavideo.data.dataset.caption_texts import CAPTION_COLUMNS, join_texts, split_texts


def text(tokens: int, value: float) -> np.ndarray:
    return np.full((tokens, 4), value, np.float16)


def test_through_a_shard(tmp_path: Path) -> None:
    samples = [([text(3, 1), text(1, 2), text(5, 3)], (0.5, 0.3, 0.2)), ([text(2, 4)], (1.0,))]
    with MDSWriter(out=str(tmp_path), columns={"text": "ndarray:float16", **CAPTION_COLUMNS}) as writer:
        for texts, weights in samples:
            writer.write(join_texts(texts, weights))
    index = (tmp_path / "index.json").read_text()
    reader = MDSReader.from_json(str(tmp_path), None, json.loads(index)["shards"][0])
    for number, (texts, weights) in enumerate(samples):
        found, found_weights = split_texts(reader.get_item(number))
        assert found_weights == weights
        assert [part.tolist() for part in found] == [part.tolist() for part in texts]


def test_a_row_of_one_text() -> None:
    found, weights = split_texts({"text": text(3, 1)})
    assert (len(found), weights) == (1, (1.0,))
    assert np.array_equal(found[0], text(3, 1))


@pytest.mark.parametrize(
    ("lengths", "weights"), [([3, 3], [1.0, 1.0]), ([5], [1.0, 1.0]), ([0, 5], [1.0, 1.0]), ([], [])]
)
def test_contradictions(lengths: list[int], weights: list[float]) -> None:
    row = {"text": text(5, 1), "text_lengths": np.asarray(lengths), "text_weights": np.asarray(weights)}
    with pytest.raises(ValueError, match="contradict"):
        split_texts(row)
    with pytest.raises(ValueError, match="no set of captions"):
        join_texts([text(1, 1)], [])


@pytest.mark.parametrize(
    ("lengths", "weights"),
    [([[2], [3]], [0.5, 0.5]), ([2, 3], [[0.5], [0.5]]), ([2, 3], [0.5, float("nan")]), ([2**31 - 1] * 3, [1.0] * 3)],
)
def test_columns_that_others_wrote(lengths: list[Any], weights: list[Any]) -> None:
    row = {
        "text": np.zeros((5, 4), np.float16), "text_lengths": np.asarray(lengths, np.int32),
        "text_weights": np.asarray(weights, np.float64),
    }  # fmt: skip
    with pytest.raises(ValueError, match="contradict"):
        split_texts(row)
