"""Flash attention 3 (the folder `hopper` of flash-attention, built by oneself or by others), on Hopper."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from megavideo.model.attention.kernel import Inputs, Lengths


@dataclass(frozen=True)
class Fa3:
    """`torch.ops.flash_attn_3`, bf16 and fp16; rows past the last segment as with `Fa4`."""

    name: ClassVar[str] = "fa3"

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Lengths, keys: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel.attend`."""
        out, lse, *_ = torch.ops.flash_attn_3.fwd(
            query,
            key,
            value,
            cu_seqlens_q=queries.cu_seqlens,
            cu_seqlens_k=keys.cu_seqlens,
            max_seqlen_q=queries.longest,
            max_seqlen_k=keys.longest,
            softmax_scale=query.shape[-1] ** -0.5,
            num_splits=1,  # the keys of a query in one piece, and so in one order
        )
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
        torch.ops.flash_attn_3.bwd(
            grad,
            query,
            key,
            value,
            out.contiguous(),
            lse,
            dq=dq,
            dk=dk,
            dv=dv,
            cu_seqlens_q=queries.cu_seqlens,
            cu_seqlens_k=keys.cu_seqlens,
            max_seqlen_q=queries.longest,
            max_seqlen_k=keys.longest,
            softmax_scale=query.shape[-1] ** -0.5,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return dq, dk, dv


def load() -> Fa3:
    """Register its operators. Raises ImportError where it does not load."""
    importlib.import_module("flash_attn_3._C")
    return Fa3()
