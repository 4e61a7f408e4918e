"""What a ring sends, and the pieces of its attention; the exchange itself is proven by tests/parity."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.attention.segments import Segments
from megavideo.parallel.layers import ring
from megavideo.parallel.layers.ring import RingPlan, merge, ring_attend, shared_runs


def _random_bounds(seed: int, tokens: int) -> list[int]:
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(1, tokens), draw.randint(0, 5)))
    return [0, *cuts, cuts[-1] if cuts else tokens]  # an unused segment, and a tail of no segment


@pytest.mark.parametrize("seed", range(30))
def test_runs_share_exactly_the_tokens_of_their_common_segment(seed: int) -> None:
    ranks, run = 4, 6
    bounds = _random_bounds(seed, ranks * run)
    segment_of = {token: i for i, (b, e) in enumerate(itertools.pairwise(bounds)) for token in range(b, e)}
    for mine, other in itertools.permutations(range(ranks), 2):
        own = [t for t in range(mine * run, (mine + 1) * run) if t in segment_of]
        theirs = [t for t in range(other * run, (other + 1) * run) if t in segment_of]
        common = {segment_of[t] for t in own} & {segment_of[t] for t in theirs}
        found = shared_runs(bounds, run, mine, other)
        assert len(common) <= 1
        if not common:
            assert found is None
            continue
        assert found is not None
        expected = [[t - rank * run for t in tokens if segment_of[t] in common]
                    for rank, tokens in ((mine, own), (other, theirs))]  # fmt: skip
        assert [list(range(part.start, part.stop)) for part in found] == expected


def _attention(shape: tuple[int, int, int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_parts_merged_by_log_sum_exp_are_the_attention_over_all_keys() -> None:
    """Three uneven parts of the keys, forward and backward, against one call over all of them, in float64."""
    query, key, value, grad = _attention((13, 2, 8), seed=1)
    whole = Segments.of((0, 13))
    expected, expected_lse = CPU_FLASH(query, key, value, whole, whole)
    cuts = [(0, 2), (2, 9), (9, 13)]
    out = lse = None
    for begin, end in cuts:
        keys = Segments.of((0, end - begin))
        part = CPU_FLASH(query, key[begin:end], value[begin:end], whole, keys)
        out, lse = part if out is None or lse is None else merge(out, lse, *part)
    assert out is not None and lse is not None
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)

    inputs = [t.clone().requires_grad_() for t in (query, key, value)]
    CPU_FLASH(inputs[0], inputs[1], inputs[2], whole, whole)[0].backward(grad)
    found = [torch.zeros_like(t) for t in (query, key, value)]
    for begin, end in cuts:
        keys = Segments.of((0, end - begin))
        parts = (query, key[begin:end], value[begin:end])
        dq, dk, dv = CPU_FLASH.backward(grad, parts, out, lse, whole, keys)
        found[0] += dq
        found[1][begin:end] = dk
        found[2][begin:end] = dv
    for mine, reference in zip(found, inputs, strict=True):
        torch.testing.assert_close(mine, reference.grad)


def test_averages_over_no_keys_merge_to_one_over_no_keys() -> None:
    out, lse = torch.ones(3, 2, 4), torch.full((2, 3), 0.5)
    nothing, never = torch.zeros(3, 2, 4), torch.full((2, 3), -torch.inf)
    for merged in (merge(out, lse, nothing, never), merge(nothing, never, out, lse)):
        torch.testing.assert_close(merged, (out, lse))
    both = merge(nothing, never, nothing, never)
    assert torch.equal(both[0], nothing)
    assert torch.equal(both[1], never)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_of_nothing_but_padding_has_zero_gradients_and_not_none(dtype: torch.dtype) -> None:
    """A rank whose parameters had no gradient would fall out of step with the others' reductions."""
    segments = Segments.of((0, 4, 4)).clipped(8, 12)
    text = Segments.of((0, 3, 3))
    query = torch.randn(4, 2, 8).to(dtype).requires_grad_()
    key, value = (torch.randn(3, 2, 8).to(dtype).requires_grad_() for _ in range(2))
    out, _ = CPU_FLASH(query, key, value, segments, text)
    assert not out.any()
    out.sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_clipped_segments_cover_the_run() -> None:
    segments = Segments.of((0, 5, 11, 11))
    assert segments.clipped(4, 8).bounds == (0, 1, 4, 4)
    assert segments.clipped(4, 8).cu_seqlens.tolist() == [0, 1, 4, 4]
    assert segments.clipped(12, 16).bounds == (0, 0, 0, 0)


class Recorder:
    """Stands for the exchanges of a ring of three, rank 1, and for its attention; notes the order of what is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        monkeypatch.setattr(RingPlan, "peer", lambda plan, offset: offset)
        monkeypatch.setattr(ring.dist, "P2POp", lambda kind, tensor, peer, group: (kind.__name__, tensor, peer))
        monkeypatch.setattr(ring.dist, "batch_isend_irecv", self._exchange)

    def _exchange(self, operations: list[tuple[str, torch.Tensor, int]]) -> list[Any]:
        sent = next(peer for kind, _, peer in operations if kind == "isend")
        what = f"{'keys' if sent > 0 else 'gradients'} {abs(sent)}"
        self.done.append(f"post {what}")
        for kind, tensor, _ in operations:
            if kind == "irecv":
                tensor.fill_(0.5)
        return [SimpleNamespace(wait=lambda: self.done.append(f"wait {what}"))]

    def __call__(self, query: torch.Tensor, key: torch.Tensor, *rest: Any) -> Any:
        self.done.append("attend")
        return CPU_FLASH(query, key, *rest)

    def backward(self, *given: Any) -> Any:
        self.done.append("attend backward")
        return CPU_FLASH.backward(*given)


def test_exchanges_are_posted_before_the_attention_that_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip over three ranks: every exchange, and every return of gradients, passes beside some attention."""
    recorder = Recorder(monkeypatch)
    group: Any = SimpleNamespace(rank=lambda: 1, size=lambda: 3)
    plan = RingPlan.of(Segments.of((0, 12)), 4, group)
    query, key, value = (torch.randn(4, 2, 8).requires_grad_() for _ in range(3))
    out = ring_attend(query, key, value, plan, recorder)  # type: ignore[arg-type]
    assert recorder.done == [
        "post keys 1", "attend",
        "post keys 2", "wait keys 1", "attend",
        "wait keys 2", "attend",
    ]  # fmt: skip
    recorder.done.clear()
    out.sum().backward()
    assert recorder.done == [
        "post keys 1", "attend backward",
        "post keys 2", "wait keys 1", "attend backward", "post gradients 1",
        "wait keys 2", "attend backward", "wait gradients 1", "post gradients 2",
        "wait gradients 2",
    ]  # fmt: skip
