"""What may change between two starts of a run, and what its folder refuses; remedies are tried."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from megavideo.config.dump import to_yaml
from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError
from megavideo.testing.settings import micro_words
from megavideo.train.resume import check_same_run

BEGUN = {"data__sources": "{image:0.5,video:1.0}", "data__max_segments": None}


def config(**settings: object) -> TrainRun:
    return load(TrainRun, "train", micro_words(data__uri="latents", **{**BEGUN, **settings}))


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The settings of a run that was started."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config()))
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [("data.sources", "{image:1.0,video:1.0}"), ("data.max_segments", 4), ("train.packs_per_step", 4),
     ("train.seed", 5), ("diffusion.shift", 2.0)],
)  # fmt: skip
def test_what_makes_it_another_run_is_refused_with_the_word_that_goes_on(begun: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="was started with") as refused:
        check_same_run(config(**{name.replace(".", "__"): value}), begun)
    assert refused.value.field.startswith(name)
    remedy = refused.value.remedy.removeprefix("write ").partition(" to go on with it")[0]
    (word,) = shlex.split(remedy)
    given, _, text = word.partition("=")
    check_same_run(config(**{given.replace(".", "__"): text}), begun)


def test_what_is_held_out_and_the_average_stay(begun: Path) -> None:
    with pytest.raises(ConfigError, match="holds out 0 clips"):
        check_same_run(config(validation__every=5, validation__clips=4), begun)
    with pytest.raises(ConfigError, match=r"optim\.ema_decay"):
        check_same_run(config(optim__ema_decay=None), begun)
    with pytest.raises(ConfigError, match=r"was started with adamw.*optim\.algorithm=adamw to go on"):
        check_same_run(config(optim="muon", optim__warmup_steps=1), begun)


def test_the_rest_may_change_and_another_stage_has_data_of_its_own(begun: Path) -> None:
    check_same_run(config(train__steps=99, optim__lr=1e-5, layout="dp2-zero1"), begun)
    other = replace(config(data__max_segments=4, train__packs_per_step=6), stage="next")
    check_same_run(other, begun)
    with pytest.raises(ConfigError, match=r"train\.seed"):
        check_same_run(replace(config(train__seed=5), stage="next"), begun)
