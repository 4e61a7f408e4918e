"""Stages of a curriculum: what each takes from the run, what beats what, and every stage of every file is legal."""

from __future__ import annotations

import pytest

from megavideo.config.curriculum import stages_of
from megavideo.config.find import configs_folder, group_options
from megavideo.config.layout import parse_layout
from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError

OF_256 = ("sora", "wan")
CURRICULA = [name for name in group_options(configs_folder({}), "curriculum") if name != "none"]


def load_train(*words: str) -> TrainRun:
    return load(TrainRun, "train", ["data.uri=latents", *words])


@pytest.mark.parametrize("name", CURRICULA)
def test_every_stage_passes_the_rules(name: str) -> None:
    stages = stages_of(load_train("run=wan_14b" if name in OF_256 else "run=small", f"curriculum={name}"))
    assert [stage.number for stage in stages] == list(range(1, len(stages) + 1))
    assert all(stage.config.stage == stage.name and not stage.config.stages for stage in stages)


@pytest.mark.parametrize("name", OF_256)
def test_the_large_ones_fit_32_nodes_of_8(name: str) -> None:
    layouts = []
    for stage in stages_of(load_train("run=wan_14b", f"curriculum={name}")):
        layout = parse_layout(stage.config.layout)
        data_ranks, rest = divmod(256, layout.model_size)
        assert rest == 0 and stage.config.train.packs_per_step % data_ranks == 0
        layouts.append(stage.config.layout)
    assert len(set(layouts)) == len(layouts)


def test_a_run_without_curriculum_is_one_stage() -> None:
    (stage,) = stages_of(load_train())
    assert (stage.name, stage.number, stage.of) == ("", 0, 1)


def test_a_stage_is_named_or_numbered() -> None:
    by_number = load_train("run=wan_14b", "curriculum=sora", "stage=3")
    by_name = load_train("run=wan_14b", "curriculum=sora", "stage=medium_512")
    assert by_number == by_name
    (stage,) = stages_of(by_number)
    assert (stage.name, stage.number, stage.of) == ("medium_512", 3, 5)
    assert stage.config.layout == "tp2-sp-cp2-ulysses-zero1"


def test_the_batch_in_tokens_is_a_number_of_packs() -> None:
    config = load_train("run=wan_14b", "curriculum=sora", "stage=1")
    assert config.train.packs_per_step * config.data.tokens_per_pack == 8388608
    said = load_train("run=wan_14b", "curriculum=sora", "stage=1", "train.packs_per_step=512")
    assert said.train.packs_per_step == 512


def test_the_command_line_beats_every_stage_and_one_stage() -> None:
    words = ("curriculum=small", "train.steps=8", "stages.medium_512.train.steps=9", "stages.long_1024.optim.lr=1e-5")
    stages = stages_of(load_train(*words))
    assert [stage.config.train.steps for stage in stages] == [8, 8, 9, 8, 8]
    assert stages[3].config.optim.lr == 1e-5 != stages[2].config.optim.lr
    alone = stages_of(load_train("curriculum=small", "stages.medium_512.train.steps=9"))
    assert [stage.config.train.steps for stage in alone] == [12, 12, 9, 12, 12]


def test_sources_of_a_stage_take_the_place_of_the_runs() -> None:
    stages = stages_of(load_train("curriculum=small"))
    assert stages[3].config.data.sources == {"image": 0.0, "video": 1.0}
    assert stages[4].config.data.sources == {}


REFUSED = [
    (("stage=2",), "stage", "without a curriculum"),
    (("curriculum=small", "stage=6"), "stage", "1 to 5"),
    (("curriculum=small", "stage=medium"), "stage", "medium_512"),
    (("curriculum=sorra",), "curriculum", "sora"),
    (("curriculum=small", "stages.medium_51.train.steps=9"), "stages.medium_51.train.steps", "stages.medium_512"),
    (("curriculum=small", "stages.medium_512.train.step=9"), "stages.medium_512.train.step", "train.steps"),
    (("curriculum=small", "stages.medium_512.model.width=9"), "stages.medium_512.model.width", "no such setting"),
    (("stages.medium_512.train.steps=9",), "stages.medium_512.train.steps", "curriculum=sora"),
    (("curriculum=small", "stages.medium_512.batch_tokens=1000"), "stages.medium_512.batch_tokens", "2048"),
    (("curriculum=small", "stages.medium_512.batch_tokens=many"), "stages.medium_512.batch_tokens", "whole number"),
    (("curriculum=small", "data.tokens_per_pack=many"), "data.tokens_per_pack", "must be int"),
    (("curriculum=small", "data.tokens_per_pack=0"), "data.tokens_per_pack", ">= 1"),
    (("stages=3",), "stages", "a group of settings"),
    (("stages={a: 3}",), "stages.a", "a group of settings"),
    (("stages={a: {data: 3}}",), "stages.a.data", "a group of settings"),
    (("exit.plateau=3",), "exit.plateau", "validation.every"),
]


@pytest.mark.parametrize(("words", "field", "said"), REFUSED)
def test_what_is_refused(words: tuple[str, ...], field: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stages_of(load_train(*words))
    assert caught.value.field == field
    assert said in str(caught.value)


def test_a_stage_that_breaks_a_rule_is_named() -> None:
    with pytest.raises(ConfigError, match="in stage medium_512"):
        stages_of(load_train("curriculum=small", "stages.medium_512.optim.warmup_steps=20"))
