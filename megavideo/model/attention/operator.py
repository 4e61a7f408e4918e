"""Attention on packs as a differentiable operator of torch, the same over every kernel.

Shape legend: N query tokens, M key tokens, A heads, h head width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from megavideo.model.attention.kernel import Inputs, Kernel, Lengths
from megavideo.model.attention.segments import Segments

_LENGTHS = "Tensor cu_q, Tensor cu_k, Tensor extent_q, Tensor extent_k"
_SCHEMA = f"(Tensor query, Tensor key, Tensor value, {_LENGTHS}) -> (Tensor, Tensor)"
_SCHEMA_BACKWARD = (
    f"(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, {_LENGTHS})"
    " -> (Tensor, Tensor, Tensor)"
)


class Attention:
    """Attention by `kernel`: rows of no segment come back as exact zeros, from the forward and the backward pass.

    It is a custom operator, so that compiled code holds it as one node and meta tensors pass through it.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._attend, self._attend_backward = _operators(kernel)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Segments, keys: Segments
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Softmax attention of each query segment over the key segment of the same number, differentiable.

        query [N, A, h], key and value [M, A, h], finite throughout. Returns the output [N, A, h] and the log-sum-exp
        [A, N] in float32 (float64 for float64 input), which has no gradient. Tokens whose segment has no keys have
        output 0 and log-sum-exp -inf; tokens of no segment have 0 in both.
        """
        lengths = (queries.cu_seqlens, keys.cu_seqlens, queries.extent, keys.extent)
        out, lse = self._attend(query, key, value, *lengths)
        return out, lse

    def backward(
        self,
        grad: torch.Tensor,
        inputs: Inputs,
        out: torch.Tensor,
        lse: torch.Tensor,
        queries: Segments,
        keys: Segments,
    ) -> Inputs:
        """Gradients of query, key and value (`inputs`) for the output's gradient `grad` [N, A, h].

        `out` and `lse` may come from more keys than are given here: then these are the given keys' share of the
        gradients of the attention over all keys, which is what makes a ring exact.
        """
        lengths = (queries.cu_seqlens, keys.cu_seqlens, queries.extent, keys.extent)
        dq, dk, dv = self._attend_backward(grad, *inputs, out, lse, *lengths)
        return dq, dk, dv


@cache  # by the kernel, so that its operators are defined once
def _operators(kernel: Kernel) -> tuple[Any, Any]:
    """Define `megavideo::attend_NAME` and `megavideo::attend_NAME_backward`."""
    name = f"megavideo::attend_{kernel.name}"
    # torch would define it anew, and take it away, with its memory, from whoever holds the first one
    assert not hasattr(torch.ops.megavideo, f"attend_{kernel.name}"), f"two kernels of the name {kernel.name}"

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *lengths: torch.Tensor) -> Any:
        queries, keys = _read(*lengths)
        if queries.total and keys.total:
            out, lse = kernel.attend(query, key, value, queries, keys)
        else:
            out, lse = _new_outputs(query)
            out.zero_()
            lse.fill_(-torch.inf)
        clear_outputs(out, lse, queries)
        return out, lse

    def attend_backward(
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        *lengths: torch.Tensor,
    ) -> Any:
        queries, keys = _read(*lengths)
        inputs = (query, key, value)
        if not (queries.total and keys.total):
            return tuple(_new(tensor).zero_() for tensor in inputs)
        grads = kernel.attend_backward(grad.contiguous(), inputs, out, lse.contiguous(), queries, keys)
        clear_gradients(grads, queries, keys)
        return grads

    backward = torch.library.custom_op(f"{name}_backward", attend_backward, mutates_args=(), schema=_SCHEMA_BACKWARD)
    backward.register_fake(lambda grad, query, key, value, *rest: (_new(query), _new(key), _new(value)))
    forward = torch.library.custom_op(name, attend, mutates_args=(), schema=_SCHEMA)
    forward.register_fake(lambda query, *rest: _new_outputs(query))

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:3], *output, *inputs[3:])

    def differentiate(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
        return *backward(grad, *ctx.saved_tensors), None, None, None, None

    forward.register_autograd(differentiate, setup_context=keep)
    _count_flops(name)
    return forward, backward


def clear_outputs(out: torch.Tensor, lse: torch.Tensor, queries: Lengths) -> None:
    """Zero the rows of no segment, and these alone, so that it costs next to nothing."""
    out[queries.total :] = 0
    lse[:, queries.total :] = 0


def clear_gradients(grads: Inputs, queries: Lengths, keys: Lengths) -> None:
    """Zero the rows of no segment in the gradients of query, key and value."""
    for tensor, total in zip(grads, (queries.total, keys.total, keys.total), strict=True):
        tensor[total:] = 0


def _read(
    cu_q: torch.Tensor, cu_k: torch.Tensor, extent_q: torch.Tensor, extent_k: torch.Tensor
) -> tuple[Lengths, Lengths]:
    return Lengths(cu_q, *extent_q.tolist()), Lengths(cu_k, *extent_k.tolist())


def _new(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _new_outputs(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return _new(query), query.new_empty(query.shape[1], query.shape[0], dtype=dtype)


def _count_flops(name: str) -> None:
    """Tell torch's FLOP counter what each pack costs: two products forward, five backward (flash recomputes one)."""
    namespace, _, operator = name.partition("::")
    packets = getattr(torch.ops, namespace)

    def pairs(cu_q: torch.Tensor, cu_k: torch.Tensor) -> int:
        return int((cu_q.diff().long() * cu_k.diff().long()).sum())

    def forward(query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, *rest: Any, **options: Any) -> int:
        return 4 * pairs(cu_q, cu_k) * query.shape[1] * query.shape[2]

    def backward(
        grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, cu_q: Any, cu_k: Any, *_: Any, **__: Any
    ) -> int:
        return 10 * pairs(cu_q, cu_k) * q.shape[1] * q.shape[2]

    register_flop_formula(getattr(packets, operator), get_raw=True)(forward)
    register_flop_formula(getattr(packets, f"{operator}_backward"), get_raw=True)(backward)
