"""Layouts with all that is worse than a GPU: equal to those with a CPU kernel on plain gloo, and faults are caught."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from megavideo.cli.main import main
from megavideo.config.schema.parity import ParityRun
from megavideo.parallel.stand_in import late_group
from megavideo.parity.matrix import FAST
from megavideo.parity.pool import Pool, RanksFailed
from megavideo.parity.record import Record
from megavideo.parity.run import run_layout, run_parity
from megavideo.parity.spec import ParitySpec
from megavideo.testing import faults

SPEC = ParitySpec(steps=2, packs_per_step=4, num_layers=2)
DEEP = replace(SPEC, num_layers=4)  # dualpipev wants as many blocks as it has stages
# a segment on the first rank of a ring of three, and one that the two others share
LONELY = replace(SPEC, heads=4, pack="1x4x8+1x8x8")


def _case(spec: ParitySpec, layout: str, *marks: Any) -> Any:
    return pytest.param(spec, layout, marks=marks, id=layout)


LAYOUTS = [
    _case(SPEC, "cp3-ring"),
    _case(DEEP, "pp2-dualpipev"),
    _case(replace(SPEC, num_layers=1), "dp2-zero3"),
    _case(SPEC, "tp2-sp", pytest.mark.slow),
    _case(SPEC, "cp2-ulysses", pytest.mark.slow),
    _case(LONELY, "cp6-2d", pytest.mark.slow),
    _case(SPEC, "pp2-dp2-zero1", pytest.mark.slow),
    _case(SPEC, "dp2-zero2-offload", pytest.mark.slow),
    _case(SPEC, "tp2-sp-cp2-ring-pp2-zero1", pytest.mark.slow),
    _case(replace(SPEC, precision="bf16"), "tp2-sp-cp2-ring-zero1", pytest.mark.slow),
]


@pytest.mark.parametrize(("spec", "layout"), LAYOUTS)
def test_a_layout_is_the_same_as_on_a_gpu(spec: ParitySpec, layout: str) -> None:
    """To the last bit of each gradient, weight and average: nothing is used before it is there, or where it is not."""
    _check_same(spec, layout)


# the fast slice of the matrix, in one short step each, and twelve besides
MATRIX = [
    pytest.param(replace(batch.spec, steps=1), layout, id=f"{batch.name}-{layout}")
    for batch in FAST
    for layout in batch.layouts
]
BESIDES = """
tp4-sp cp8-ring cp6-2d cp4-ulysses-zero2 cp4-2d-dp2-zero3 tp2-sp-cp4-2d pp4-dp2-zero1 cp2-ring-pp2-dualpipev
tp2-sp-pp2-dualpipev cp4-2d-pp2 tp2-sp-cp2-ulysses-dp2-zero3 dp2-zero1-offload
"""


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "layout"), [*MATRIX, *(_case(replace(DEEP, steps=1), t) for t in BESIDES.split())])
def test_the_matrix_is_the_same_as_on_a_gpu(spec: ParitySpec, layout: str) -> None:
    _check_same(spec, layout)


def _check_same(spec: ParitySpec, layout: str) -> None:
    plain = run_layout(Pool(), spec, layout)
    late = run_layout(Pool(), replace(spec, device_like="gpu", kernel="stand-in"), layout)
    for one, other in zip(plain, late, strict=True):
        assert (one.losses, one.grad_norms) == (other.losses, other.grad_norms)
        for piece, expected in zip(other.pieces, one.pieces, strict=True):
            assert (piece.kind, piece.name, piece.step) == (expected.kind, expected.name, expected.step)
            assert bool((piece.values == expected.values).all()), piece.name
        assert one.host_reads is None and other.host_reads
        assert all(key.startswith("between/") or "/deepspeed/runtime/zero/utils.py:" in key for key in other.host_reads)


@contextmanager
def first_call_by_some() -> Iterator[None]:
    """The fault of that name, for which a test need not wait long."""
    soon = partial(late_group.Lateness, first_call_seconds=20.0)  # of groups that are made from now on
    with patch.object(late_group, "Lateness", soon), faults.first_call_by_some():
        yield


FAULTS = {
    "wait_forgotten": (SPEC, "cp2-ring", "message .* on rank [01]: its work was dropped before it was waited for"),
    "buffer_reused_early": (SPEC, "cp2-ring", "message .* on rank [01]: buffer reused early: its input .* was changed"),
    "first_call_by_some": (
        LONELY,
        "cp6-2d",
        "rank [01] did not come in 20 s to the first call of the group, which makes its communicator, as rank [2345] "
        "did with message ",
    ),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[pytest.mark.slow] * (name == "first_call_by_some")) for name in FAULTS]
)
def test_a_fault_is_caught(fault: str) -> None:
    spec, layout, told = FAULTS[fault]
    with pytest.raises(RanksFailed, match=rf"^process \d failed: CollectiveFault: .*{told}"):
        where = __name__ if fault == "first_call_by_some" else faults.__name__
        run_layout(Pool(), replace(spec, device_like="gpu"), layout, f"{where}:{fault}")


def test_a_read_in_a_pass_is_caught() -> None:
    told = r"HostReadInPass: item at megavideo/testing/faults\.py:\d+, in the forward pass, reads a tensor's values"
    with pytest.raises(RanksFailed, match=rf"^process 0 failed: {told}"):
        run_layout(Pool(), replace(SPEC, device_like="gpu"), "zero1", f"{faults.__name__}:value_read_in_pass")


def test_the_report_tells_how_often_a_step_reads(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parity", "zero1", "--steps", "2", "--layers", "1", "packs_per_step=2", "--device-like", "gpu"]
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["layouts"]
    assert row["host_reads"] > 1
    assert main(words) == 0
    assert f"  {row['host_reads']:g} host reads a step" in capsys.readouterr().out


def test_the_matrix_is_run_on_late_collectives_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []

    def run(pool: Pool, spec: ParitySpec, *given: Any) -> list[Record]:
        kinds.append(spec.device_like)
        raise RanksFailed("not run")

    monkeypatch.setattr(Pool, "run", run)
    monkeypatch.setattr("megavideo.parity.run.run_oracle", lambda spec: Record((0.0,), (0.0,), ()))
    run_parity(ParityRun(matrix="fast", device_like="gpu"), ())
    assert set(kinds) == {"gpu"}
