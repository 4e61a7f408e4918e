"""Late collectives: equal to gloo's for who waits, and a fault for who does what a GPU would not bear."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.attention.segments import Segments
from megavideo.parallel.stand_in.late_group import late_process_group
from megavideo.testing.ranks import run_ranks
from tests.parallel.late_cases import (
    RANKS,
    breaches,
    each_call,
    impatient,
    leaves_a_work,
    ring_of_some,
    slow,
    whole_pack,
)

Breaches = list[dict[str, list[str | None]]]

NOBODY = (None, None)
# what the first rank is told, and what the second
TOLD: dict[str, tuple[str | None, str | None]] = {
    "nothing_wrong": NOBODY,
    "input_changed": (
        r"^all_gather float32 \[2\] of the group of ranks 0, 1, on rank 0: buffer reused early: its input float32 "
        r"\[2\] was changed before it was (made|done|waited for)$",
        None,
    ),
    "sent_changed": (r"message float32 \[2, 3\] .* on rank 0: buffer reused early", None),
    "sent_changed_when_done": (r"message .*: buffer reused early: .* was changed before it was waited for", None),
    "output_written": (r"all_reduce SUM float32 \[2\] .*: its output float32 \[2\] was written to before", None),
    "never_waited": NOBODY,
    "dropped": (
        r"all_reduce SUM float32 \[3\] .* on rank 0 is not made, since before: all_reduce SUM float32 \[2\] .*: its "
        r"work was dropped before it was waited for",
        None,
    ),
    "other_operation": 2 * (r"rank 0 calls all_reduce SUM float32 \[2\]; rank 1 calls broadcast \(root 0\) float32",),
    "other_shape": 2 * (r"rank 0 calls all_gather float32 \[2\]; rank 1 calls all_gather float32 \[3\]",),
    "other_dtype": 2 * (r"rank 0 calls all_reduce SUM float32 \[2\]; rank 1 calls all_reduce SUM bfloat16 \[2\]",),
    "other_root": 2 * (r"rank 0 calls broadcast \(root 0\) .*; rank 1 calls broadcast \(root 1\)",),
    "other_sum": 2 * (r"rank 0 calls all_reduce SUM .*; rank 1 calls all_reduce MAX",),
    "other_order": 2 * (r"rank 0 calls all_reduce SUM float32 \[2\]; rank 1 calls all_reduce SUM float32 \[3\]",),
    "other_splits": 2 * (r"all_to_all float32: rank 0 sends 3 elements to rank 1, which takes 2",),
    "other_message": 2 * (r"rank 0 calls message float32 \[2, 3\] \(tag 0\); rank 1 calls message float32 \[3, 2\]",),
    "missing_call": (
        r"^rank 1 did not come in 3 s to all_reduce SUM float32 \[6\] of the group of ranks 0, 1, on rank 0 \(last "
        r"call in the group of rank 1: all_reduce SUM float32 \[5\]\)$",
        None,
    ),
    "missing_message": (None, r"^rank 0 did not come in 3 s to message float32 \[2\] "),
    "first_call_of_one": (
        r"^rank 1 did not come in 2 s to the first call of the group, which makes its communicator, as rank 0 did with "
        r"all_reduce SUM float32 \[5\]",
        None,
    ),
    "first_message_of_one": (None, r"^rank 0 did not come in 2 s to the first call of the group"),
    "not_contiguous": 2 * (r"all_reduce SUM float32 \[3, 4\] is given float32 \[3, 4\], which is not contiguous",),
    "from_any": 2 * (r"a message from any rank cannot be received: NCCL has no such call",),
    "fails_in_gloo": 2 * (r"all_reduce BAND .* failed: .",),
}
# known before the call is made, so that nothing is left of it in the group
REFUSED = ("nothing_wrong", "first_call_of_one", "first_message_of_one", "not_contiguous", "from_any")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_call_gives_what_gloo_gives(asynchronous: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """And nothing before: the ranks look at the outputs of asynchronous calls before they wait."""
    folder = tmp_path_factory.mktemp("calls")
    plain = run_ranks(each_call, (asynchronous, False), folder / "plain", processes=RANKS)
    late = run_ranks(each_call, (asynchronous, True), folder / "late", processes=RANKS, group=slow)
    assert late == plain
    assert len(late[0]) > 20


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Breaches:
    return run_ranks(breaches, (), tmp_path_factory.mktemp("breaches"), processes=2, group=impatient)


@pytest.mark.parametrize("breach", TOLD)
def test_a_breach_is_told_to_the_rank_that_meets_it(found: Breaches, breach: str) -> None:
    for rank, expected in enumerate(TOLD[breach]):
        told = found[rank][breach][0]
        assert (told is None) == (expected is None), told
        assert expected is None or re.search(expected, told or ""), told


@pytest.mark.parametrize("breach", TOLD)
def test_a_breach_is_told_again_as_the_group_is_destroyed(found: Breaches, breach: str) -> None:
    """Whoever may have caught it before."""
    for rank, expected in enumerate(TOLD[breach]):
        told: Any = found[rank][breach][1]
        if breach == "never_waited" and rank == 0:
            assert re.fullmatch(r"all_reduce SUM float32 \[2\] of the group .* on rank 0 was never waited for", told)
        elif expected is None or breach in REFUSED:
            assert told is None
        else:
            assert told


def test_a_work_that_nobody_waited_for_is_told_at_the_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(RuntimeError, match=r"CollectiveFault: all_reduce SUM float32 \[2\] .* was never waited for"):
        run_ranks(leaves_a_work, (), tmp_path_factory.mktemp("left"), processes=2, group=late_process_group)


LONELY = [0, 4, 12]  # a segment on the first rank of three, and one that the two others share


def test_the_first_exchange_of_a_ring_may_be_one_of_some_ranks(tmp_path: Path) -> None:
    """As the groups' own first call is one of all."""
    found = run_ranks(ring_of_some, (LONELY, False), tmp_path, processes=3, group=impatient)
    inputs = [t.requires_grad_() for t in whole_pack(LONELY[-1])]
    segments = Segments.of(LONELY)
    out, _ = CPU_FLASH(inputs[0], inputs[1], inputs[2], segments, segments)
    out.square().sum().backward()
    expected = [out.detach(), *(t.grad for t in inputs)]
    for place, whole in enumerate(expected):
        parts = torch.tensor([rank[place] for rank in found], dtype=torch.float64)
        torch.testing.assert_close(parts.view(whole.shape), whole)


def test_a_first_call_of_the_groups_that_is_left_out_is_missed(tmp_path: Path) -> None:
    told = (
        r"CollectiveFault: rank 0 did not come in 2 s to the first call of the group, .* as rank [12] did with message"
    )
    with pytest.raises(RuntimeError, match=told):
        run_ranks(ring_of_some, (LONELY, True), tmp_path, processes=3, group=impatient)
