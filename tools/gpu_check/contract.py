"""What every attention kernel must do, as functions that are asked of one: they raise AssertionError where it does not.

Those that return a number return the share of the allowed error that was found. What only a GPU can answer raises
Unasked on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace

import torch
from torch.library import opcheck

from megavideo.model.attention.segments import Segments
from megavideo.parallel.layers.ring import merge
from tools.gpu_check.cases import Case, Results, Subject, eager, error, exact, make, pieces, run, segments
from tools.gpu_check.gpu_contract import GPU_CONTRACT
from tools.gpu_check.unasked import Unasked

Check = Callable[[Subject], float | None]
_NAMES = tuple(field.name for field in fields(Results))


def right(subject: Subject) -> float:
    """Self- and cross-attention, lengths around the edges of tiles, one segment and more than 256: against float64."""
    longest = 4097 if subject.on_gpu else 300
    cases: list[tuple[list[int], list[int]]] = [
        ([1, 79, 80, 81], [1, 79, 80, 81]),
        ([127, 128, 129], [129, 1, 127]),
        ([191, 192, 193], [77, 5, 128]),
        ([longest], [longest]),
        ([1 + i % 3 for i in range(257)], [1 + i % 5 for i in range(257)]),
    ]
    worst = 0.0
    for head_dim in (64, 128):
        for lengths, key_lengths in cases:
            case = make(subject, lengths, key_lengths, head_dim=head_dim, tails=(3, 2))
            worst = max(worst, _share(run(subject.attention, case), case))
    return worst


def log_sum_exp(subject: Subject) -> float:
    """In float32 [A, N], contiguous, natural: with one key it is the score, without any -inf. Never NaN or +inf."""
    case = make(subject, [3, 40, 2], [1, 1, 0], tails=(5, 0))
    _, lse = subject.attention(*case.inputs, case.queries, case.keys)
    assert lse.dtype == torch.float32, f"log-sum-exp in {lse.dtype}"
    assert lse.shape == (case.query.shape[1], case.query.shape[0]) and lse.is_contiguous(), "not [A, N], contiguous"
    assert not lse.isnan().any() and not (lse == torch.inf).any(), "NaN or +inf"
    assert (lse[:, 43:45] == -torch.inf).all(), "queries without keys have no -inf"
    scale = case.query.shape[-1] ** -0.5
    worst = 0.0
    for q, k in list(pieces(case))[:2]:
        scores = torch.einsum("nah,ah->an", case.query[q].double(), case.key[k.start].double()) * scale
        worst = max(worst, error(lse[:, q], scores))
    return worst / 1e-3


def without_tokens(subject: Subject) -> None:
    """Segments without queries, without keys and without both, and tensors without rows."""
    case = make(subject, [5, 0, 7, 0, 3], [4, 6, 0, 0, 2], tails=(2, 2))
    found = run(subject.attention, case)
    _all_zero("queries without keys", found.out[5:12], found.dq[5:12])
    assert (found.lse[:, 5:12] == -torch.inf).all(), "log-sum-exp of queries without keys is not -inf"
    _all_zero("keys without queries", found.dk[4:10], found.dv[4:10])
    assert _share(found, case) <= 1, "the others are wrong"
    for lengths, key_lengths in (([0, 0], [3, 4]), ([3, 4], [0, 0]), ([0, 0], [0, 0])):
        found = run(subject.attention, make(subject, lengths, key_lengths))
        _all_zero(f"{lengths} queries to {key_lengths} keys", found.out, found.dq, found.dk, found.dv)
        assert (found.lse == -torch.inf).all(), f"{lengths} queries to {key_lengths} keys: log-sum-exp is not -inf"


def tails_are_zero(subject: Subject) -> None:
    """Rows of no segment come back as zeros, also where the memory held NaN before."""
    case = make(subject, [60, 9], [33, 70], tails=(130, 200))
    _poison(subject, case)
    found = run(subject.attention, case)
    _all_zero("rows of no segment", found.out[69:], found.lse[:, 69:], found.dq[69:], found.dk[103:], found.dv[103:])


def tails_do_not_matter(subject: Subject) -> None:
    """What the rows of no segment hold changes no bit of the others."""
    case = make(subject, [100, 45], [88, 60], tails=(70, 90))
    zeros, large = (run(subject.attention, case.with_tails(fill)) for fill in (0.0, 1e4))
    _same(zeros, large)


def segments_are_apart(subject: Subject) -> None:
    """What one segment holds changes no bit of another."""
    case = make(subject, [100, 45], [88, 60])
    before = run(subject.attention, case)
    other = replace(case, **{name: getattr(case, name).clone() for name in ("query", "key", "value", "grad")})
    for tensor, start in zip((*other.inputs, other.grad), (100, 88, 88, 100), strict=True):
        tensor[start:] = tensor[start:].flip(0) + 1
    after = run(subject.attention, other)
    assert not torch.equal(before.out[100:], after.out[100:]), "the changed segment did not change"
    for name, one, two in (
        ("output", before.out[:100], after.out[:100]),
        ("log-sum-exp", before.lse[:, :100], after.lse[:, :100]),
        ("gradient of key", before.dk[:88], after.dk[:88]),
        ("gradient of value", before.dv[:88], after.dv[:88]),
    ):
        assert torch.equal(one, two), f"another segment changed the {name}"


def keys_in_parts(subject: Subject) -> float:
    """Keys in two and in four uneven parts, one of them empty: merged they give the whole, forward and backward."""
    case = make(subject, [50, 33, 1], [40, 129, 7], tails=(4, 0))
    return max(_share(_from_parts(subject, case, cuts), case) for cuts in ([0.3], [0.1, 0.1, 0.75]))


def merge_of_nothing(subject: Subject) -> None:
    """Two averages over no keys merge to one over no keys, without NaN, and have no gradient."""
    case = make(subject, [6], [0])
    out, lse = subject.attention(*case.inputs, case.queries, case.keys)
    merged, total = merge(out.float(), lse, out, lse)
    _all_zero("merge of nothing", merged)
    assert (total == -torch.inf).all(), "merge of nothing: log-sum-exp is not -inf"
    keys = make(subject, [6], [3])
    none = subject.attention.backward(case.grad, keys.inputs, out, total, case.queries, segments([0], subject.device))
    _all_zero("gradients through no keys", *none)


def bounds_do_not_matter(subject: Subject) -> None:
    """A longest segment that is told as longer than it is changes no bit: kernels plan by it, rounded up."""
    if subject.attention.kernel.name == "stand_in":
        raise Unasked("it refuses bounds that are not exact")
    case = make(subject, [90, 20], [33, 64])
    loose = replace(case, queries=_loose(case.queries, 110), keys=_loose(case.keys, 97))
    _same(run(subject.attention, case), run(subject.attention, loose))


def operator(subject: Subject) -> None:
    """torch's own check of a custom operator: schema, autograd, fake tensors, tracing."""
    case = make(subject, [20, 5], [7, 30], tails=(3, 4))
    lengths = (case.queries.cu_seqlens, case.keys.cu_seqlens, case.queries.extent, case.keys.extent)
    inputs = tuple(t.clone().requires_grad_() for t in case.inputs)
    name = f"attend_{subject.attention.kernel.name}"
    opcheck(getattr(torch.ops.megavideo, name).default, (*inputs, *lengths))
    out, lse = subject.attention(*case.inputs, case.queries, case.keys)
    given = (case.grad, *case.inputs, out, lse, *lengths)
    tests = ("test_schema", "test_faketensor")
    opcheck(getattr(torch.ops.megavideo, f"{name}_backward").default, given, test_utils=tests)


def fused_projections(subject: Subject) -> None:
    """Query, key and value as parts of one tensor, as a fused projection gives them."""
    case = make(subject, [60, 31], tails=(4, 4))
    fused = torch.cat([t.flatten(1) for t in case.inputs], dim=1)
    views = [part.unflatten(-1, case.query.shape[1:]) for part in fused.chunk(3, dim=-1)]
    assert not any(view.is_contiguous() for view in views)
    found = run(subject.attention, replace(case, query=views[0], key=views[1], value=views[2]))
    assert all(getattr(found, name).is_contiguous() for name in _NAMES), "results are not contiguous"
    _same(run(subject.attention, case), found)


def twice(subject: Subject) -> None:
    """Two runs are equal bit by bit; with torch's deterministic algorithms so is the gradient of the query."""
    case = make(subject, [200, 77], [130, 99], tails=(9, 0))
    _same(run(subject.attention, case), run(subject.attention, case))
    with _deterministic():
        one, two = run(subject.attention, case), run(subject.attention, case)
    _same(one, two)
    assert torch.equal(one.dq, two.dq), "the gradient of the query differs, though it is to be deterministic"


CONTRACT: Mapping[str, Check] = {
    "output and gradients against float64": right,
    "log-sum-exp": log_sum_exp,
    "segments and tensors without tokens": without_tokens,
    "rows of no segment are zero": tails_are_zero,
    "rows of no segment do not matter": tails_do_not_matter,
    "segments do not see each other": segments_are_apart,
    "keys in parts give the whole": keys_in_parts,
    "merge of averages over no keys": merge_of_nothing,
    "loose bounds change nothing": bounds_do_not_matter,
    "operator as torch checks it": operator,
    "parts of a fused projection": fused_projections,
    "the same twice": twice,
    **GPU_CONTRACT,
}


def _share(found: Results, case: Case) -> float:
    """The largest error as a share of the allowed one: twice that of plain torch in the same precision."""
    truth, plain = exact(case), eager(case)
    dtype, worst = case.query.dtype, 0.0
    # sums are kept in float32, whose own roundings then count
    roundings = torch.finfo(dtype).eps * (64 if dtype == torch.float32 else 1)
    for name in _NAMES:
        ours, wanted, theirs = (getattr(each, name) for each in (found, truth, plain))
        real = wanted.isfinite()
        assert torch.equal(ours.isfinite(), real), f"{name}: finite elsewhere than in float64"
        ours, wanted, theirs = (each.masked_fill(~real, 0) for each in (ours, wanted, theirs))
        floor = roundings * float(wanted.abs().max()) if wanted.numel() else 0.0
        allowed = max(2 * error(theirs, wanted), 1e-3 if name == "lse" else floor, 1e-12)
        worst = max(worst, error(ours, wanted) / allowed)
    return worst


def _from_parts(subject: Subject, case: Case, cuts: list[float]) -> Results:
    """The attention of `case`, with the keys of every segment cut at these shares of their number."""
    shares = [0.0, *cuts, 1.0]
    parts: list[tuple[torch.Tensor, Segments]] = []
    for low, high in itertools.pairwise(shares):
        rows = [slice(k.start + int(low * (n := k.stop - k.start)), k.start + int(high * n)) for _, k in pieces(case)]
        index = torch.cat([torch.arange(r.start, r.stop) for r in rows]).to(subject.device)
        parts.append((index, segments([r.stop - r.start for r in rows], subject.device)))
    out, lse = subject.attention(case.query, case.key[parts[0][0]], case.value[parts[0][0]], case.queries, parts[0][1])
    wide = out.float()
    for index, keys in parts[1:]:
        part = subject.attention(case.query, case.key[index], case.value[index], case.queries, keys)
        wide, lse = merge(wide, lse, *part)
    total = case.queries.bounds[-1]
    lse[:, total:] = 0  # rows of no segment: the logarithm of a sum of ones
    merged = wide.to(case.query.dtype)
    grads = [torch.zeros_like(t, dtype=torch.float32) for t in case.inputs]
    for index, keys in parts:
        inputs = (case.query, case.key[index], case.value[index])
        dq, dk, dv = subject.attention.backward(case.grad, inputs, merged, lse, case.queries, keys)
        grads[0] += dq
        grads[1][index] += dk
        grads[2][index] += dv
    return Results(merged, lse, grads[0], grads[1], grads[2])


def _loose(given: Segments, longest: int) -> Segments:
    made = Segments(given.cu_seqlens, given.bounds)
    made.extent[1] = longest
    return made


def _same(one: Results, two: Results) -> None:
    for name, tensor in one.in_one_order().items():
        assert torch.equal(tensor, two.in_one_order()[name]), f"{name} differs"


def _all_zero(what: str, *tensors: torch.Tensor) -> None:
    assert all(bool((tensor == 0).all()) for tensor in tensors), f"{what}: not zero"


def _poison(subject: Subject, case: Case) -> None:
    """Leave NaN in memory that the next tensors of these sizes are likely to be given."""
    for _ in range(8):
        kept = [torch.full_like(t, torch.nan) for t in (*case.inputs, case.grad)]
        kept.append(torch.full((case.query.shape[1], case.query.shape[0]), torch.nan, device=subject.device))
        del kept


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # which would hide what is left unwritten
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill
