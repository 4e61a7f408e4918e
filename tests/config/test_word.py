"""What a remedy says to write is taken, and means what was said."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.config.word import as_word


def _read(*words: str) -> TrainRun:
    return load(TrainRun, "train", ["data.uri=latents", *words])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.sources", {"image": 0.5, "video/*": 1.0}),
        ("data.max_segments", None),
        ("optim.lr", 3e-05),
        ("optim.betas", (0.8, 0.95)),
        ("checkpoint.asynchronous", False),
        ("output", "my runs, all of them"),
        ("validation.prompts", ('a "red" shape', "it's blue")),
    ],
)
def test_a_value_comes_back_through_the_shell(name: str, value: Any) -> None:
    more = ["validation.samples_every=5", "validation.every=5"] if name == "validation.prompts" else []
    (word,) = shlex.split(as_word(name, value))
    config: Any = _read(word, *more)
    for part in name.split("."):
        config = getattr(config, part)
    assert config == value


def test_what_needs_no_quotes_has_none() -> None:
    assert as_word("train.seed", 3) == "train.seed=3"
