"""A run that is stopped and started anew on other ranks and workers delivers what one without a stop does."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from megavideo.config.schema.train import TrainRun
from megavideo.data.plan.step_plan import StagePlace
from megavideo.data.table.open import FOLDER_NAME
from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_config
from tests.data.feed_ranks import Start, Visits, delivered, make_feed


def run_of(uri: str, output: Path, packs_per_step: int) -> TrainRun:
    return micro_config(data__uri=uri, output=output, train__packs_per_step=packs_per_step, data__max_segments=16)


def store_environment() -> dict[str, str]:
    """Where the store is and who asks it."""
    return {name: value for name, value in os.environ.items() if name.startswith(("S3_", "AWS_"))}


def three_epochs(config: TrainRun, cache: Path | None) -> int:
    """Steps in which every sample comes three times."""
    plan = make_feed(Start(config, cache, 1, 0, 0, 0, 0), 0).plan
    packs = -(-plan.packs_per_cycle * 3 // plan.passes_per_cycle)
    return -(-packs // config.train.packs_per_step)


def with_changes(
    config: TrainRun, cache: Path | None, steps: int, stops: list[int], draw: random.Random, ranks: tuple[int, ...]
) -> tuple[dict[int, Visits], set[tuple[int, int]]]:
    """What a run delivers that is stopped so often, and the (ranks, workers) that it was on."""
    seen: dict[int, Visits] = {}
    layouts = set()
    environment = store_environment()
    for begin, end in zip([0, *stops], [*stops, steps], strict=True):
        dp, workers = draw.choice(ranks), draw.randint(0, 4)
        seen |= delivered(Start(config, cache, dp, workers, begin, end, steps, environment))
        layouts.add((dp, workers))
    return seen, layouts


def test_two_changes(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "data"), 60)
    config = run_of(str(tmp_path / "data"), tmp_path, 4)
    whole = delivered(Start(config, None, 1, 0, 0, 9, 9))
    first = delivered(Start(config, None, 2, 1, 0, 3, 9))
    second = delivered(Start(config, None, 1, 2, 3, 4, 9))
    assert first | second | delivered(Start(config, None, 2, 0, 4, 9, 9)) == whole
    assert max(sum(whole.values(), Counter()).values()) == 1


def test_a_feed_takes_what_is_selected_from_the_place_of_its_stage(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "data"), 60)
    (tmp_path / "bad").write_text("sample-6\n")
    config = micro_config(
        data__uri=tmp_path / "data", output=tmp_path, data__frames="[5,5]", guard__exclude=tmp_path / "bad",
        validation__every=9, validation__clips=7,
    )  # fmt: skip
    feed = make_feed(Start(config, None, 1, 0, 0, 0, 0), 0, StagePlace(stage=1, first_step=100, first_visit=4))
    held_out = {f"sample-{i}" for i in feed.selected.held_out.tolist()}
    trained = {f"sample-{i}" for i in range(60) if i % 6 in (0, 4)} - held_out - {"sample-6"}  # of GRIDS, 2 frames
    packs = [batch.pack for step in range(100, 130) for batch in feed.step(step).batches]
    assert {name for pack in packs for name in pack.sample_ids if name} == trained
    visits = {visit for pack in packs for name, visit in zip(pack.sample_ids, pack.visits, strict=True) if name}
    assert min(visits) == 4 and max(visits) < feed.plan.visits_reached(130)
    assert len(held_out) == 7 and feed.selected.left_out.num_left == len(trained)
    assert [path.name for path in tmp_path.glob("cache/*")] == [FOLDER_NAME]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packs_per_step", "ranks", "store"),
    [(24, (1, 2, 3, 4, 6, 8), False), (35, (1, 5, 7), False), (8, (1, 2, 4, 8), True)],
)
def test_twenty_changes_over_three_epochs(
    packs_per_step: int, ranks: tuple[int, ...], store: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = f"{request.getfixturevalue('s3_bucket')}/data" if store else str(tmp_path / "data")
    cache = tmp_path / "cache" if store else None
    count = 1400 if packs_per_step > 8 else 500
    write_dataset(uri, count, shard_bytes=1 << 15)
    config = run_of(uri, tmp_path, packs_per_step)
    steps = three_epochs(config, cache)
    draw = random.Random(packs_per_step)
    stops = sorted(draw.sample(range(1, steps), 20))
    whole = delivered(Start(config, cache, 1, 0, 0, steps, steps, store_environment()))
    seen, layouts = with_changes(config, cache, steps, stops, draw, ranks)
    assert seen == whole
    total = sum(whole.values(), Counter())
    assert max(total.values()) == 1  # none twice
    assert {(f"sample-{i}", visit) for i in range(count) for visit in range(3)} <= total.keys()  # none lost
    print(f"{steps} steps, {sum(total.values())} samples delivered, {len(layouts)} layouts: {sorted(layouts)}")
