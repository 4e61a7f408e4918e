"""Reads for which a GPU would wait: each kind is seen, by phase and place, and what is no read is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from megavideo.parallel.stand_in.host_reads import HostReadInPass, HostReads

X = torch.arange(6.0)
MASK = X > 2
ONES = torch.ones(6, dtype=torch.int64)

READS: dict[str, tuple[str, Callable[[], Any]]] = {
    "item": ("item", lambda: X[0].item()),
    "bool": ("item", lambda: bool(MASK.any())),
    "if": ("item", lambda: 1 if X[1] else 0),
    "float": ("item", lambda: float(X[0])),
    "int": ("item", lambda: int(X[0])),
    "index of a list": ("item", lambda: [1, 2][ONES[0]]),
    "slice": ("item", lambda: X[ONES[0] :]),
    "tolist": ("tolist", lambda: X.tolist()),
    "numpy": ("numpy", lambda: X.numpy()),
    "array": ("numpy", lambda: np.asarray(X)),
    "cpu": ("cpu", lambda: X.cpu()),
    "nonzero": ("nonzero", lambda: X.nonzero()),
    "where": ("nonzero", lambda: torch.where(MASK)),
    "masked_select": ("masked_select", lambda: X.masked_select(MASK)),
    "unique": ("unique", lambda: X.unique()),
    "unique_dim": ("unique", lambda: torch.unique(X.view(2, 3), dim=0)),
    "unique_consecutive": ("unique", lambda: torch.unique_consecutive(X, return_counts=True)),
    "equal": ("equal", lambda: torch.equal(X, X)),
    "allclose": ("allclose", lambda: torch.allclose(X, X)),
    "repeat_interleave": ("repeat_interleave", lambda: X.repeat_interleave(ONES)),
    "mask": ("index", lambda: X[MASK]),
    "mask of rows": ("index", lambda: X.view(6, 1)[:, 0][MASK]),
    "write by mask": ("index_put", lambda: X.clone().__setitem__(MASK, X[:3])),
    "index_put": ("index_put", lambda: X.index_put((MASK,), X[:3])),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "shape": lambda: X.shape[0] + X.numel() + len(X),
    "arithmetic": lambda: (X * 2 + X).sum(),
    "index": lambda: X[ONES],
    "select": lambda: X[2],
    "masked_fill": lambda: X.masked_fill(MASK, 0.0),
    "where": lambda: torch.where(MASK, X, 0.0),
    "repeat_interleave": lambda: X.repeat_interleave(ONES, output_size=6),
    "repeat by a number": lambda: X.repeat_interleave(2),
    "write by index": lambda: X.clone().index_put_((ONES,), X),
    "to": lambda: X.to(torch.bfloat16),
}


@pytest.mark.parametrize("name", READS)
def test_each_kind_of_read_is_counted_once_at_its_line(name: str) -> None:
    operation, read = READS[name]
    reads = HostReads(forbid=False)
    with reads:
        read()
    assert reads.counts() == {
        f"between/{operation}/tests/parallel/test_host_reads.py:{read.__code__.co_firstlineno}": 1
    }


@pytest.mark.parametrize("name", OTHERS)
def test_what_reads_no_values_is_not_counted(name: str) -> None:
    reads = HostReads(forbid=True)
    with reads:
        OTHERS[name]()
    assert reads.counts() == {}


class _Reading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grads[0].sum().item()
        return grads[0]


class _Model(nn.Module):
    def __init__(self, *, reads: bool, reads_in_backward: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 1)
        self._reads = reads
        self._reads_in_backward = reads_in_backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        if self._reads:
            out.tolist()
        return _Reading.apply(out) if self._reads_in_backward else out


def _lines(text: str) -> list[int]:
    with open(__file__) as file:
        return [number for number, line in enumerate(file, 1) if line.strip() == text]


def test_phases_follow_the_model() -> None:
    model, reads = _Model(reads=True, reads_in_backward=True), HostReads(forbid=False)
    reads.start(model)
    with reads:
        loss = model(X).sum()
        loss.tolist()
        loss.backward()
        loss.item()
    forward, between = _lines("out.tolist()"), _lines("loss.tolist()")
    backward, after = _lines("grads[0].sum().item()"), _lines("loss.item()")
    here = "tests/parallel/test_host_reads.py"
    assert reads.counts() == {
        f"forward/tolist/{here}:{forward[0]}": 1,
        f"between/tolist/{here}:{between[0]}": 1,
        f"backward/item/{here}:{backward[0]}": 1,
        f"between/item/{here}:{after[0]}": 1,
    }
    reads.start(model)
    assert reads.counts() == {}


def test_a_read_in_the_forward_pass_is_forbidden() -> None:
    model, reads = _Model(reads=True, reads_in_backward=False), HostReads(forbid=True)
    reads.start(model)
    place = rf"tests/parallel/test_host_reads\.py:{_lines('out.tolist()')[0]}"
    with reads, pytest.raises(HostReadInPass, match=f"^tolist at {place}, in the forward pass"):
        model(X)
    with reads:  # the pass is over, though not to its end
        X.tolist()
    assert [key.partition("/")[0] for key in reads.counts()] == ["between"]


def test_a_read_in_the_backward_pass_is_forbidden() -> None:
    model, reads = _Model(reads=False, reads_in_backward=True), HostReads(forbid=True)
    reads.start(model)
    place = rf"tests/parallel/test_host_reads\.py:{_lines('grads[0].sum().item()')[0]}"
    with reads:
        loss = model(X).sum()
        loss.item()
        with pytest.raises(HostReadInPass, match=f"^item at {place}, in the backward pass"):
            loss.backward()
    assert list(reads.counts().values()) == [1]


@torch.library.custom_op("megavideo_test::reading", mutates_args=())
def _reading_operator(x: torch.Tensor) -> torch.Tensor:
    x.tolist(), x.numpy(), x.nonzero(), x.sum().item()
    return x.clone()


def test_what_a_custom_operator_does_inside_is_not_counted() -> None:
    reads = HostReads(forbid=True)
    with reads:
        _reading_operator(X)
    assert reads.counts() == {}


def test_other_threads_are_not_counted() -> None:
    reads = HostReads(forbid=True)
    with reads:
        thread = threading.Thread(target=lambda: (X.tolist(), X.sum().item(), np.asarray(X)))
        thread.start()
        thread.join()
    assert reads.counts() == {}


def test_nothing_stays_behind() -> None:
    before = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy", "__array__", "cpu")}
    reads = HostReads(forbid=False)
    with reads, pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    X.tolist()
    assert reads.counts() == {}
    assert {name: getattr(torch.Tensor, name) for name in before} == before
