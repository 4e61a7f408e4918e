"""Attention on a CPU: torch's flash attention, segment by segment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from megavideo.model.attention.kernel import Inputs, Lengths
from megavideo.model.attention.operator import Attention


@dataclass(frozen=True)
class CpuFlash:
    """`aten._scaled_dot_product_flash_attention_for_cpu` on each segment; bf16, fp16, fp32 and fp64."""

    name: ClassVar[str] = "cpu"

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Lengths, keys: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel.attend`."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        lse = query.new_empty(query.shape[1], query.shape[0], dtype=dtype)
        for q, k in _segments(queries, keys):
            if q.start == q.stop or k.start == k.stop:  # an empty block would end the process (SIGFPE)
                out[q], lse[:, q] = 0, -torch.inf
                continue
            parts = (_heads_first(t) for t in (query[q], key[k], value[k]))
            found, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, False)
            out[q], lse[:, q] = found[0].transpose(0, 1), sums[0]
        return out, lse

    def attend_backward(
        self,
        grad: torch.Tensor,
        inputs: Inputs,
        out: torch.Tensor,
        lse: torch.Tensor,
        queries: Lengths,
        keys: Lengths,
    ) -> Inputs:
        """See `Kernel.attend_backward`."""
        query, key, value = inputs
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs)
        for q, k in _segments(queries, keys):
            if q.start == q.stop or k.start == k.stop:
                dq[q], dk[k], dv[k] = 0, 0, 0
                continue
            parts = (_heads_first(t) for t in (grad[q], query[q], key[k], value[k], out[q]))
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *parts, lse[None, :, q].contiguous(), 0.0, False
            )
            dq[q], dk[k], dv[k] = (t[0].transpose(0, 1) for t in found)
        return dq, dk, dv


def _segments(queries: Lengths, keys: Lengths) -> Iterator[tuple[slice, slice]]:
    bounds = (itertools.pairwise(lengths.cu_seqlens.tolist()) for lengths in (queries, keys))
    for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
        yield slice(q0, q1), slice(k0, k1)


def _heads_first(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.transpose(0, 1).unsqueeze(0)


CPU_FLASH = Attention(CpuFlash())
