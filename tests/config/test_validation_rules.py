"""Rules of the group `validation`, each by itself."""

from __future__ import annotations

import dataclasses

import pytest

from megavideo.config.rules.validation import VALIDATION_RULES
from megavideo.config.schema.train import TrainRun
from megavideo.config.schema.validation import ValidationConfig
from megavideo.errors import ConfigError
from megavideo.parity.spec import ParitySpec

PROMPTS = ("a red kite",)
REFUSED = [
    (ValidationConfig(uri="held"), "validation.uri", "validation.every=null"),
    (ValidationConfig(clips=3), "validation.clips", "validation.every=null"),
    (ValidationConfig(samples_every=5, prompts=PROMPTS, levels=3), "validation.levels", "validation.every=null"),
    (ValidationConfig(prompts=PROMPTS), "validation.prompts", "validation.samples_every=null"),
    (ValidationConfig(every=5, frames=5), "validation.frames", "validation.samples_every=null"),
    (ValidationConfig(guidance=1.0), "validation.guidance", "validation.samples_every=null"),
    (ValidationConfig(samples_every=5), "validation.prompts", "draws samples of prompts"),
    (ValidationConfig(samples_every=5, prompts=("a kite", " ")), "validation.prompts", "with words in them"),
]


def check(validation: ValidationConfig) -> None:
    run: TrainRun = dataclasses.replace(ParitySpec().as_training("zero0"), validation=validation)
    for rule in VALIDATION_RULES:
        rule(run)


@pytest.mark.parametrize(("validation", "field", "reason"), REFUSED)
def test_refused(validation: ValidationConfig, field: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        check(validation)
    assert str(error.value).startswith(field)


def test_taken() -> None:
    check(ValidationConfig())
    check(ValidationConfig(every=5, uri="held", clips=3, levels=2))
    check(ValidationConfig(samples_every=5, prompts=PROMPTS, frames=5, height=64, width=64, sample_steps=3, guidance=1))
