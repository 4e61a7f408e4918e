"""The numbers of a run do not depend on how many ranks, which ZeRO stage and how much accumulation made them."""

from __future__ import annotations

import pytest

from megavideo.testing.train_cases import Outcome
from tests.train.conftest import QUICK_ON_FOUR, QUICK_ON_ONE, QUICK_ON_TWO, STEPS, Place, Runs, slow_but

ORACLE = "one_zero0"  # one process, four accumulated packs, no ZeRO
_ALL_RUNS = slow_but(
    ("one_zero1", "two_zero0", "two_zero1", "four_zero0", "four_zero1"), QUICK_ON_ONE | QUICK_ON_TWO | QUICK_ON_FOUR
)


def _outcomes(name: str, *runs: Runs) -> list[Outcome]:
    return next(found[name] for found in runs if name in found)


def assert_losses(place: Place, on_one: Runs, name: str, tolerance: float) -> None:
    assert on_one[ORACLE]
    assert place.losses(name) == pytest.approx(place.losses(ORACLE), rel=tolerance)
    assert len(place.losses(name)) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_zero1", "one_recomputed"])
def test_one_process(place: Place, on_one: Runs, name: str) -> None:
    assert on_one[name]
    assert_losses(place, on_one, name, 1e-5)


@pytest.mark.parametrize("name", slow_but(["two_zero0", "two_zero1"], QUICK_ON_TWO))
def test_two_processes(place: Place, on_one: Runs, on_two: Runs, name: str) -> None:
    reports = [outcome.report for outcome in on_two[name]]
    assert [report["rank"] for report in reports if report] == [0, 1]
    assert all(report and report["steps"] == STEPS and report["skipped"] == 0 for report in reports)
    assert_losses(place, on_one, name, 1e-5)


@pytest.mark.parametrize("name", slow_but(["four_zero0", "four_zero1"], QUICK_ON_FOUR))
def test_four_processes(place: Place, on_one: Runs, on_four: Runs, name: str) -> None:
    assert on_four[name]
    assert_losses(place, on_one, name, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_bf16", "two_bf16"])
def test_bf16(place: Place, on_one: Runs, on_two: Runs, name: str) -> None:
    assert (on_one if name in on_one else on_two)[name]
    assert_losses(place, on_one, name, 2e-2)
    assert place.losses(name) != place.losses(ORACLE)


@pytest.mark.parametrize("name", _ALL_RUNS)
def test_gradient_norms_agree_too(place: Place, on_one: Runs, on_two: Runs, on_four: Runs, name: str) -> None:
    assert _outcomes(name, on_one, on_two, on_four) and on_one[ORACLE]
    norms, expected = ([row["grad_norm"] for row in place.rows(run)] for run in (name, ORACLE))
    assert norms == pytest.approx(expected, rel=1e-4)


def test_a_run_goes_on_under_another_layout(place: Place, on_one: Runs, on_two: Runs) -> None:
    """From two ranks with ZeRO-1 to one without, in the middle of the run."""
    (report,) = [outcome.report for outcome in on_one["moved"]]
    assert report and report["resumed_at"] == 10
    assert_losses(place, on_one, "moved", 1e-5)
    manifests = [place.reader("moved", step).manifest for step in (21, STEPS)]
    assert [manifest.layout for manifest in manifests] == ["zero0", "zero0"]


@pytest.mark.parametrize("name", ["one_zero0", "two_zero1", "four_zero1"])
def test_fragments_cover_every_state_of_every_parameter_once(
    place: Place, on_one: Runs, on_two: Runs, on_four: Runs, name: str
) -> None:
    assert _outcomes(name, on_one, on_two, on_four)
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


@pytest.mark.parametrize("name", ["moved", *_ALL_RUNS])
def test_all_layouts_come_to_the_same_states(
    place: Place, on_one: Runs, on_two: Runs, on_four: Runs, name: str
) -> None:
    assert _outcomes(name, on_one, on_two, on_four) and on_one[ORACLE]
    reader, expected = place.reader(name), place.reader(ORACLE)
    for state in ("weight", "ema"):
        whole = reader.whole(state)
        for parameter, values in expected.whole(state).items():
            assert (whole[parameter] - values).abs().max() < 1e-4, (state, parameter)


def test_without_an_average_none_is_saved(place: Place, on_one: Runs) -> None:
    assert on_one["no_average"]
    assert place.reader("no_average").manifest.states == {"weight", "exp_avg", "exp_avg_sq"}
