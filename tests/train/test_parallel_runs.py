"""The numbers of a run do not depend on how many ranks, which ZeRO stage and how much accumulation made them."""

from __future__ import annotations

import pytest

from megavideo.testing.train_cases import Outcome
from tests.train.conftest import STEPS, Place

Outcomes = dict[str, list[Outcome]]
ORACLE = "one_zero0"  # one process, four accumulated packs, no ZeRO


def assert_losses(place: Place, name: str, tolerance: float) -> None:
    assert place.losses(name) == pytest.approx(place.losses(ORACLE), rel=tolerance)
    assert len(place.losses(name)) == STEPS


@pytest.mark.parametrize("name", ["one_zero1", "one_recomputed"])
def test_one_process(place: Place, on_one: Outcomes, name: str) -> None:
    assert_losses(place, name, 1e-5)


@pytest.mark.parametrize("name", ["two_zero0", "two_zero1"])
def test_two_processes(place: Place, on_one: Outcomes, on_two: Outcomes, name: str) -> None:
    assert_losses(place, name, 1e-5)
    reports = [outcome.report for outcome in on_two[name]]
    assert [report["rank"] for report in reports if report] == [0, 1]
    assert all(report and report["steps"] == STEPS and report["skipped"] == 0 for report in reports)


@pytest.mark.parametrize("name", ["four_zero0", "four_zero1"])
def test_four_processes(place: Place, on_one: Outcomes, on_four: Outcomes, name: str) -> None:
    assert_losses(place, name, 1e-5)


@pytest.mark.parametrize("name", ["one_bf16", "two_bf16"])
def test_bf16(place: Place, on_one: Outcomes, on_two: Outcomes, name: str) -> None:
    assert_losses(place, name, 2e-2)
    assert place.losses(name) != place.losses(ORACLE)


def test_gradient_norms_agree_too(place: Place, on_one: Outcomes, on_two: Outcomes, on_four: Outcomes) -> None:
    expected = [row["grad_norm"] for row in place.rows(ORACLE)]
    for name in ("one_zero1", "two_zero0", "two_zero1", "four_zero0", "four_zero1"):
        assert [row["grad_norm"] for row in place.rows(name)] == pytest.approx(expected, rel=1e-4)


def test_a_run_goes_on_under_another_layout(place: Place, on_one: Outcomes, on_two: Outcomes) -> None:
    """From two ranks with ZeRO-1 to one without, in the middle of the run."""
    (report,) = [outcome.report for outcome in on_one["moved"]]
    assert report and report["resumed_at"] == 10
    assert_losses(place, "moved", 1e-5)
    manifests = [place.reader("moved", step).manifest for step in (21, STEPS)]
    assert [manifest.layout for manifest in manifests] == ["zero0", "zero0"]


@pytest.mark.parametrize("name", ["one_zero0", "two_zero1", "four_zero1"])
def test_fragments_cover_every_state_of_every_parameter_once(
    place: Place, on_one: Outcomes, on_two: Outcomes, on_four: Outcomes, name: str
) -> None:
    manifest = place.reader(name).manifest
    assert manifest.states == {"weight", "exp_avg", "exp_avg_sq", "ema"}
    assert manifest.step == manifest.optimizer_steps == STEPS
    assert len(manifest.files) == {"one_zero0": 1, "two_zero1": 2, "four_zero1": 4}[name]
    pieces: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for entry in (fragment for file in manifest.files for fragment in file.fragments):
        pieces.setdefault((entry.state, entry.name), []).append((entry.start, entry.start + entry.numel))
    assert len(pieces) == 4 * len(manifest.shapes)
    for (_, parameter), runs in pieces.items():
        runs.sort()
        assert [end for _, end in runs[:-1]] == [begin for begin, _ in runs[1:]]
        numel = 1
        for size in manifest.shapes[parameter]:
            numel *= size
        assert (runs[0][0], runs[-1][1]) == (0, numel)


def test_all_layouts_come_to_the_same_states(
    place: Place, on_one: Outcomes, on_two: Outcomes, on_four: Outcomes
) -> None:
    expected = place.reader(ORACLE)
    for name in ("one_zero1", "two_zero0", "two_zero1", "four_zero1", "moved"):
        reader = place.reader(name)
        for state in ("weight", "ema"):
            whole = reader.whole(state)
            for parameter, values in expected.whole(state).items():
                assert (whole[parameter] - values).abs().max() < 1e-4, (name, state, parameter)


def test_without_an_average_none_is_saved(place: Place, on_one: Outcomes) -> None:
    assert place.reader("no_average").manifest.states == {"weight", "exp_avg", "exp_avg_sq"}
