"""Rules between the settings of checkpoints."""

from __future__ import annotations

import pytest

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "field", "rule"),
    [
        (["checkpoint.through_folder=false"], "checkpoint.through_folder", "no effect with checkpoint.uri=null"),
        (["checkpoint.uri=gs://bucket/runs"], "checkpoint.uri", "storage 'gs' is not supported"),
        (["checkpoint.every=300", "checkpoint.keep_every=1000"], "checkpoint.keep_every", "multiple of"),
        (["checkpoint.keep_best=1"], "checkpoint.keep_best", "no effect with validation.every=null"),
    ],
)
def test_what_has_no_effect_is_refused(words: list[str], field: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        load(TrainRun, "train", ["data.uri=latents", *words])
    assert caught.value.field == field
    assert caught.value.remedy


@pytest.mark.parametrize(
    "words",
    [
        ["checkpoint=long"],
        ["checkpoint.uri=s3://bucket/runs", "checkpoint.through_folder=false"],
        ["checkpoint.uri=/shared/runs"],
        ["checkpoint.every=300", "checkpoint.keep_every=900"],
        ["checkpoint.keep_best=2", "validation.every=100"],
    ],
)
def test_what_has_is_taken(words: list[str]) -> None:
    load(TrainRun, "train", ["data.uri=latents", *words])
