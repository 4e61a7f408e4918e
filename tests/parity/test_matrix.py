"""The project's layouts beside one process: a few of each kind by default, all of them under the slow marker."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from megavideo.config.layout import parse_layout
from megavideo.parity.matrix import FAST, FULL, Batch
from megavideo.parity.oracle import run_oracle
from megavideo.parity.pool import Pool
from megavideo.parity.record import Record
from megavideo.parity.run import LIMITS, check_parity_layout, compare_layout
from megavideo.parity.spec import ParitySpec


@cache
def oracle_of(spec: ParitySpec) -> Record:
    return run_oracle(spec)


def _cases(batches: tuple[Batch, ...]) -> Iterator[object]:
    for batch in batches:
        for layout in batch.layouts:
            yield pytest.param(batch, layout, id=f"{batch.name}-{layout}")


def _check(batch: Batch, layout: str) -> None:
    limits = LIMITS[batch.spec.precision]
    check_parity_layout(batch.spec, layout)
    found = compare_layout(Pool(), batch.spec, oracle_of(batch.spec), layout)
    assert found.within(limits.loss, limits.gradient), found


@pytest.mark.parametrize(("batch", "layout"), _cases(FAST))
def test_layouts_of_every_kind(batch: Batch, layout: str) -> None:
    _check(batch, layout)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "layout"), _cases(FULL))
def test_every_layout(batch: Batch, layout: str) -> None:
    _check(batch, layout)


def test_the_matrix_has_every_pair_of_dimensions() -> None:
    """Sixty layouts and more; each pair of tp, sp, cp by each kind, pp and dp with each ZeRO stage that is legal."""
    layouts = [parse_layout(text) for batch in FULL for text in batch.layouts]
    assert len({layout.format() for layout in layouts}) >= 60

    def traits(text: str) -> set[str]:
        layout = parse_layout(text)
        found = {f"zero{layout.zero}"} if layout.zero > 1 else set()
        found |= {"tp"} if layout.tp > 1 else set()
        found |= {"sp"} if layout.sp else set()
        found |= {str(layout.cp_kind)} if layout.cp > 1 else set()
        found |= {layout.pp_schedule} if layout.pp > 1 else set()
        found |= {"dp"} if (layout.dp or 1) > 1 else set()
        return found | ({"offload"} if layout.offload else set())

    held = [traits(text) for batch in FULL for text in batch.layouts]
    names = ["tp", "sp", "ulysses", "ring", "2d", "1f1b", "dualpipev", "dp", "zero2", "zero3"]
    excluded = [{"ulysses", "ring"}, {"ulysses", "2d"}, {"ring", "2d"}, {"1f1b", "dualpipev"}, {"zero2", "zero3"}]
    excluded += [{schedule, zero} for schedule in ("1f1b", "dualpipev") for zero in ("zero2", "zero3")]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            pair = {first, second}
            assert pair in excluded or any(pair <= found for found in held), pair


def test_the_mixture_is_what_it_says() -> None:
    """An image, a clip longer than half the pack, and an empty tail, in every pack; no two packs alike in order."""
    spec = ParitySpec()
    for pack in range(spec.packs_per_step):
        grids = spec.grids(pack)
        assert any(grid.t == 1 for grid in grids)
        assert any(grid.num_tokens > spec.tokens / 2 for grid in grids)
        assert sum(grid.num_tokens for grid in grids) < spec.tokens
    assert spec.grids(0) != spec.grids(1)
