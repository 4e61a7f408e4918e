"""`kill -9` of one rank at a random step, then the same command: as if nothing had happened."""

from __future__ import annotations

import random
import secrets

import pytest

from megavideo.checkpoint.read import CheckpointReader
from megavideo.testing.launch import Launched, run
from tests.train.conftest import STEPS, Place, Runs, parity_words

UNINTERRUPTED = "two_zero1"


def test_a_killed_run_goes_on(place: Place, on_two: Runs) -> None:
    assert all(outcome.error is None for outcome in on_two[UNINTERRUPTED])
    seed = secrets.randbelow(10_000)
    draw = random.Random(seed)
    # the last checkpoint lies two to four steps back, so that steps are lost and must be made again
    step, rank = draw.choice((7, 14)) + draw.randint(2, 4), draw.randint(0, 1)
    print(f"seed {seed}: kill -9 of rank {rank} once step {step} is written")
    words = ["train", *parity_words(place, "killed", "dp2-zero1", checkpoint__asynchronous="false")]
    with Launched("megavideo", words, place.root / "killed_logs", processes=2) as launched:
        launched.wait_for_lines(place.run("killed") / "metrics.jsonl", step)
        launched.kill_rank(rank)
        assert launched.finish().status != 0
    before = place.losses("killed")
    assert step <= len(before) < STEPS
    saved = place.reader("killed").manifest.step
    print(f"the last step written is {len(before)}, the last saved {saved}")
    assert saved in (7, 14) and saved < len(before)

    again = run("megavideo", words, place.root / "again_logs", processes=2)
    assert again.status == 0, again.err
    assert f"step_{saved:08d}" in again.err  # says where it goes on from
    expected, losses = place.losses(UNINTERRUPTED), place.losses("killed")
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, rel=1e-6)
    assert before == pytest.approx(expected[: len(before)], rel=1e-6)
    assert_same_states(place.reader("killed"), place.reader(UNINTERRUPTED))


def assert_same_states(one: CheckpointReader, two: CheckpointReader) -> None:
    assert one.manifest.step == two.manifest.step == STEPS
    assert one.manifest.optimizer_steps == two.manifest.optimizer_steps
    for state in ("ema", "weight", "exp_avg", "exp_avg_sq"):
        expected = two.whole(state)
        for name, values in one.whole(state).items():
            assert (values - expected[name]).abs().max() <= 1e-6, (state, name)
