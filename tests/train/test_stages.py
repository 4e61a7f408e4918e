"""Which stage comes next, and when one is over: pure functions of where a run stands."""

from __future__ import annotations

import pytest

from megavideo.config.curriculum import Stage, stages_of
from megavideo.config.load import load
from megavideo.config.schema.exit import ExitConfig
from megavideo.config.schema.train import TrainRun
from megavideo.errors import CheckpointError, ConfigError
from megavideo.train.position import Position, read_position
from megavideo.train.stages import next_stage, reached_exit


def stages(*words: str) -> tuple[Stage, ...]:
    return stages_of(load(TrainRun, "train", ["data.uri=latents", *words]))


ALL = stages("curriculum=small")
THIRD = stages("curriculum=small", "stage=3")
PLAIN = stages("train.steps=20", "optim.warmup_steps=2")


def test_a_run_that_has_not_begun_takes_the_first_stage() -> None:
    assert next_stage(ALL, None, 0) == (ALL[0], Position("images_256", 1))
    assert next_stage(PLAIN, None, 0) == (PLAIN[0], Position())


def test_a_stage_alone_may_begin_a_run_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert next_stage(THIRD, None, 0) == (THIRD[0], Position("medium_512", 3))
    assert "the stages between were not trained" in caplog.text


def test_a_stage_under_way_goes_on() -> None:
    position = Position("short_256", 2, first_step=12, first_visit=3, samples=70)
    assert next_stage(ALL, position, 15) == (ALL[1], position)


def test_the_next_stage_takes_over_steps_and_visits() -> None:
    position = Position("short_256", 2, first_step=12, first_visit=3, next_visit=9, finished="steps", rollbacks=1)
    assert next_stage(ALL, position, 24) == (ALL[2], Position("medium_512", 3, first_step=24, first_visit=9))
    assert next_stage(THIRD, position, 24) == (THIRD[0], Position("medium_512", 3, first_step=24, first_visit=9))


def test_nothing_is_left_after_the_last_stage_or_the_one_that_was_asked_for() -> None:
    assert next_stage(ALL, Position("multimodal", 5, finished="plateau"), 60) is None
    assert next_stage(THIRD, Position("medium_512", 3, finished="steps"), 36) is None


@pytest.mark.parametrize(
    ("position", "said"),
    [
        (Position("short_256", 2, first_step=12), "is not finished"),
        (Position("long_1024", 4, first_step=36), "has gone on to stage 4"),
        (Position(), "without a curriculum"),
    ],
)
def test_a_stage_that_does_not_follow_is_refused(position: Position, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        next_stage(THIRD, position, 15)


def test_a_run_of_a_curriculum_does_not_go_on_without_it() -> None:
    with pytest.raises(ConfigError, match="under a curriculum"):
        next_stage(PLAIN, Position("short_256", 2), 15)


def test_a_plain_run_goes_on_where_its_steps_were_raised() -> None:
    assert next_stage(PLAIN, Position(finished="steps"), 20) is None
    assert next_stage(PLAIN, Position(finished="steps"), 10) == (PLAIN[0], Position())
    assert next_stage(PLAIN, Position(finished="samples"), 10) is None


def test_whichever_exit_comes_first_ends_a_stage() -> None:
    position = Position("a", 1, first_step=100, samples=50, tokens=900, stale=2)
    assert reached_exit(ExitConfig(), 20, position, 119) is None
    assert reached_exit(ExitConfig(), 20, position, 120) == "steps"
    assert reached_exit(ExitConfig(samples=50), 20, position, 110) == "samples"
    assert reached_exit(ExitConfig(tokens=901), 20, position, 110) is None
    assert reached_exit(ExitConfig(plateau=2), 20, position, 110) == "plateau"


def test_a_validation_improves_by_a_share_or_not() -> None:
    position = Position().validated(1.0, 0.01)
    assert (position.best_loss, position.stale) == (1.0, 0)
    position = position.validated(0.995, 0.01)
    assert (position.best_loss, position.stale) == (1.0, 1)
    position = position.validated(0.9, 0.01)
    assert (position.best_loss, position.stale) == (0.9, 0)


def test_a_position_comes_back_from_a_manifest() -> None:
    position = Position("a", 1, 5, 2, passed_over=(7, 8), losses=(0.5, 0.25), best_loss=0.25).rolled_back((9,))
    assert position.passed_over == (7, 8, 9)
    assert read_position(position.to_json(), "here") == position
    assert read_position({}, "an old one") == Position()
    with pytest.raises(CheckpointError, match="damaged"):
        read_position({"passed_over": 3}, "here")
