"""Attention inside the segments of a pack, on CPU and GPU, with its log-sum-exp.

Shape legend: N query tokens, M key tokens, K segments, A heads, h head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Segments:
    """Where the segments of a packed axis begin and end.

    cu_seqlens [K+1] int32 on the device; `bounds` holds the same numbers on the host (CPU kernels only, else empty);
    `max_tokens` bounds the longest segment without asking the device.
    """

    cu_seqlens: torch.Tensor
    bounds: tuple[int, ...]
    max_tokens: int

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor, num_tokens: int) -> Segments:
        """Segments of an axis of `num_tokens`, the last of which may belong to none."""
        bounds = tuple(cu_seqlens.tolist()) if cu_seqlens.device.type == "cpu" else ()
        return cls(cu_seqlens, bounds, num_tokens)

    def clipped(self, begin: int, end: int) -> Segments:
        """The parts of the segments in the run [begin, end) of the axis, counted from its start."""
        bounds = tuple(min(max(bound, begin), end) - begin for bound in self.bounds)
        return Segments(self.cu_seqlens.clamp(begin, end) - begin, bounds, end - begin)

    def host_bounds(self) -> tuple[int, ...]:
        """The bounds on the host; where only the device knows them, the first call waits for it."""
        return self.bounds or self._fetched

    @cached_property
    def _fetched(self) -> tuple[int, ...]:
        return tuple(self.cu_seqlens.tolist())


def attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Segments, keys: Segments
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of each query segment over the key segment of the same number.

    query [N, A, h], key and value [M, A, h]. Returns the output [N, A, h], zero for tokens of no segment, and the
    log-sum-exp [A, N] in float32 (float64 for float64 input).
    """
    if query.device.type == "cpu":
        return _attend_cpu(query, key, value, queries.bounds, keys.bounds)
    return _attend_cuda(query, key, value, queries, keys)


def attend_varlen_backward(
    grad: torch.Tensor,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    queries: Segments,
    keys: Segments,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value (`inputs`) of `attend_varlen`, whose output's gradient is `grad`.

    `out` and `lse` may come from more keys than are given here: then these are the given keys' share of the
    gradients of the attention over all keys, which is what makes a ring exact.
    """
    if grad.device.type == "cpu":
        return _backward_cpu(grad, inputs, out, lse, queries.bounds, keys.bounds)
    rng_state = torch.zeros(2, dtype=torch.uint64, device=grad.device)  # unused without dropout
    dq, dk, dv = torch.ops.torch_attn._varlen_attn_backward(
        grad,
        *inputs,
        out,
        lse,
        queries.cu_seqlens,
        keys.cu_seqlens,
        queries.max_tokens,
        keys.max_tokens,
        False,
        rng_state,
    )
    in_query = torch.arange(grad.shape[0], device=grad.device) < queries.cu_seqlens[-1]
    in_key = torch.arange(dk.shape[0], device=grad.device) < keys.cu_seqlens[-1]
    # the kernel leaves rows outside every segment unwritten
    return _kept(dq, in_query), _kept(dk, in_key), _kept(dv, in_key)


def _kept(rows: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return torch.where(real[:, None, None], rows, 0.0)


class _Nothing(torch.autograd.Function):
    """Attention of tokens that belong to no segment: zeros, with zero gradients.

    A run of nothing but padding still takes part in the backward pass: a rank whose parameters had no gradient at all
    would fall out of step with the others' reductions.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(query, key, value)
        return torch.zeros_like(query)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return tuple(torch.zeros_like(t) for t in ctx.saved_tensors)


def _backward_cpu(
    grad: torch.Tensor,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    q_bounds: tuple[int, ...],
    k_bounds: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = inputs
    grads = tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs)
    for i in range(len(q_bounds) - 1):
        q0, q1, k0, k1 = q_bounds[i], q_bounds[i + 1], k_bounds[i], k_bounds[i + 1]
        if q1 == q0 or k1 == k0:
            continue
        rows = (grad[q0:q1], query[q0:q1], key[k0:k1], value[k0:k1], out[q0:q1])
        parts = (t.transpose(0, 1).unsqueeze(0) for t in rows)
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *parts, lse[None, :, q0:q1].contiguous(), 0.0, False
        )
        for whole, part, (begin, end) in zip(grads, found, ((q0, q1), (k0, k1), (k0, k1)), strict=True):
            whole[begin:end] = part[0].transpose(0, 1)
    return grads[0], grads[1], grads[2]


def _attend_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, q_bounds: tuple[int, ...], k_bounds: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for i in range(len(q_bounds) - 1):
        q0, q1, k0, k1 = q_bounds[i], q_bounds[i + 1], k_bounds[i], k_bounds[i + 1]
        if q1 == q0:
            continue
        parts = (t.transpose(0, 1).unsqueeze(0) for t in (query[q0:q1], key[k0:k1], value[k0:k1]))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, False)
        outputs.append(out[0].transpose(0, 1))
        sums.append(lse[0])
    if not outputs:
        nothing: torch.Tensor = _Nothing.apply(query, key, value)
        return nothing, query.new_zeros(query.shape[1], query.shape[0])
    # one segment needs no copy
    out, lse = (torch.cat(outputs), torch.cat(sums, dim=1)) if len(outputs) > 1 else (outputs[0], sums[0])
    tail = query.shape[0] - q_bounds[-1]
    # tokens past the last segment attend to nothing; their log-sum-exp has no meaning and is left at zero
    return (F.pad(out, (0, 0, 0, 0, 0, tail)), F.pad(lse, (0, tail))) if tail else (out, lse)


def _attend_cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Segments, keys: Segments
) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    out, lse = varlen_attn(
        query,
        key,
        value,
        queries.cu_seqlens,
        keys.cu_seqlens,
        queries.max_tokens,
        keys.max_tokens,
        return_aux=AuxRequest(lse=True),
    )
    # the kernel leaves rows outside every segment unwritten
    real = torch.arange(query.shape[0], device=query.device) < queries.cu_seqlens[-1]
    return torch.where(real[:, None, None], out, 0.0), torch.where(real[None, :], lse, 0.0)
