"""`megavideo train` under every kind of layout, and from any to any other: as if it had stayed in one process."""

from __future__ import annotations

import itertools
import shutil

import pytest

from megavideo.testing.dataset import write_dataset
from megavideo.testing.train_cases import Case, Outcome, run_cases
from tests.train.conftest import Place, slow_but
from tests.train.routes import (
    DATA,
    LEG,
    STATES,
    Pairs,
    Route,
    furthest_state,
    run_pairs,
    run_route,
    times_saved,
    words,
)

ROUTES = {
    "to_four_and_one": Route(("dp2-zero1", "tp2-sp", "tp2-sp-pp2", "zero0", "cp2-ring")),
    "by_pipeline": Route(("pp2", "dp2-zero3", "tp2-sp-cp2-ring-zero3", "zero1", "pp2-zero1")),
}
IN_BF16 = "in_bf16"
BF16_ROUTE = Route(("dp2-zero1", "tp2-sp-zero1", "pp2-zero1", "tp2-sp-pp2-zero1"), {"train__precision": "bf16"})
STAYS = "stays"
ALL_ROUTES = {**ROUTES, IN_BF16: BF16_ROUTE}
QUICK = ("to_four_and_one",)

# every one goes on from every other in the slow test: five steps after the first two
EVERY = Pairs(
    (
        "zero0", "tp2-sp", "cp2-ring", "cp2-ulysses", "pp2", "cp4-2d", "dp4-zero1", "dp4-zero2", "dp4-zero3",
        "tp2-sp-cp2-ring", "pp2-dp2-zero1", "tp2-sp-pp2-zero1",
    ),
    begun=LEG,
    steps=LEG + 5,
)  # fmt: skip

Outcomes = tuple[str, list[list[Outcome]]]  # a route's name, and its outcomes by leg and rank


@pytest.fixture(scope="session")
def flat(place: Place) -> None:
    """The dataset of these runs."""
    write_dataset(str(place.root / DATA), 18, flat=True)


@pytest.fixture(scope="session")
def stays(place: Place, flat: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The run that stays in one process, as far as the longest route."""
    longest = LEG * max(len(route.layouts) for route in ROUTES.values())
    case = Case(words(place, STAYS, "zero0", longest, {}))
    [[outcome]] = run_cases([case], tmp_path_factory.mktemp("stays"), processes=1)
    assert outcome.error is None, outcome.message


@pytest.fixture(scope="session")
def route(
    place: Place, stays: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Outcomes:
    """A route that the run is sent on."""
    name = request.param
    return name, run_route(place, name, ALL_ROUTES[name], tmp_path_factory.mktemp("route"))


_EACH = pytest.mark.parametrize("route", slow_but(ALL_ROUTES, QUICK), indirect=True)
_EACH_IN_FP32 = pytest.mark.parametrize("route", slow_but(ROUTES, QUICK), indirect=True)


@_EACH
def test_each_leg_goes_on_where_the_one_before_ended(route: Outcomes) -> None:
    for leg, outcomes in enumerate(route[1], 1):
        assert [(outcome.error, outcome.message) for outcome in outcomes] == [(None, "")] * len(outcomes)
        reports = [outcome.report for outcome in outcomes if outcome.report]
        assert [report["rank"] for report in reports] == list(range(len(outcomes)))
        assert {report["resumed_at"] for report in reports} == {LEG * (leg - 1)}
        assert {report["skipped"] for report in reports} == {0}
    parameters = {outcome.report["parameters"] for leg in route[1] for outcome in leg if outcome.report}
    assert len(parameters) == 1


@_EACH_IN_FP32
def test_losses_are_those_of_one_process(place: Place, route: Outcomes) -> None:
    name, _ = route
    losses, expected = place.losses(name), place.losses(STAYS)
    furthest = max(abs(mine - theirs) / theirs for mine, theirs in zip(losses, expected, strict=True))
    print(f"{name}: {expected[0]:.4f} -> {expected[-1]:.4f}, at most {furthest:.1e} from one process")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.8 * expected[0]  # else losses would say little about weights
    norms, expected = ([row["grad_norm"] for row in place.rows(run)] for run in (name, STAYS))
    assert norms == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("route", [IN_BF16], indirect=True)
def test_losses_in_bf16(place: Place, route: Outcomes) -> None:
    losses = place.losses(route[0])
    assert len(losses) == LEG * len(BF16_ROUTE.layouts)
    expected = place.losses(STAYS)[: len(losses)]
    assert losses == pytest.approx(expected, rel=2e-2)
    assert losses != pytest.approx(expected, rel=1e-5)  # it was bf16


@_EACH_IN_FP32
def test_states_are_those_of_one_process(place: Place, route: Outcomes) -> None:
    name, legs = route
    for leg in range(1, len(legs) + 1):
        reader, expected = place.reader(name, leg * LEG), place.reader(STAYS, leg * LEG)
        assert reader.manifest.layout.startswith(ROUTES[name].layouts[leg - 1])
        assert reader.manifest.states == set(STATES)
        assert reader.manifest.shapes == expected.manifest.shapes
        assert reader.manifest.optimizer_steps == expected.manifest.optimizer_steps == leg * LEG
        found = {state: furthest_state(reader, expected, state) for state in STATES}
        print(f"{reader.manifest.layout}: " + ", ".join(f"{state} {far:.1e}" for state, (far, _) in found.items()))
        assert max(far for far, _ in found.values()) <= 1e-5, found


@_EACH
def test_each_element_is_saved_once(place: Place, route: Outcomes) -> None:
    name, legs = route
    for leg in range(1, len(legs) + 1):
        manifest = place.reader(name, leg * LEG).manifest
        counts = times_saved(manifest)
        assert set(counts) == set(itertools.product(STATES, manifest.shapes))
        assert [key for key, count in counts.items() if not bool((count == 1).all())] == []


def test_states_of_other_steps_would_not_pass(place: Place, stays: None) -> None:
    """The comparison itself: a step apart, no state is equal."""
    for state in STATES:
        far, _ = furthest_state(place.reader(STAYS, LEG), place.reader(STAYS, 2 * LEG), state)
        assert far > 1e-2


@pytest.mark.slow
def test_every_layout_goes_on_under_every_other(
    place: Place, flat: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The next five losses, and all states after them, are those of a run that stayed in one process."""
    logs = tmp_path_factory.mktemp("pairs")
    run_cases([Case(EVERY.words(place, "stays_short", "zero0", EVERY.steps))], logs / "stays", processes=1)
    outcomes = run_pairs(place, EVERY, logs)
    faults: list[object] = [
        (name, outcome.message) for name, ranks in outcomes.items() for outcome in ranks if outcome.error
    ]
    assert faults == []
    expected, last = place.losses("stays_short"), place.reader("stays_short")
    assert expected[-1] < 0.8 * expected[0]  # else losses would say little about weights
    worst: dict[str, tuple[float, str]] = {}
    for one, two in itertools.product(EVERY.layouts, EVERY.layouts):
        name = EVERY.name(one, two)
        assert {outcome.report["resumed_at"] for outcome in outcomes[name] if outcome.report} == {EVERY.begun}
        losses = place.losses(name)
        assert len(losses) == EVERY.steps
        far = {"loss": max(abs(mine - theirs) / theirs for mine, theirs in zip(losses, expected, strict=True))}
        far |= {state: furthest_state(place.reader(name), last, state)[0] for state in STATES}
        if max(far.values()) > 1e-5:
            faults.append((name, far))
        worst = {key: max(worst.get(key, (0.0, "")), (value, name)) for key, value in far.items()}
        shutil.rmtree(place.run(name))
    for key, (value, name) in worst.items():
        print(f"{len(EVERY.layouts) ** 2} pairs: {key} at most {value:.1e} from one process, in {name}")
    assert faults == []
