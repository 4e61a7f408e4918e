"""Flash attention 2 as torch holds it, for GPUs from Ampere on. On Hopper and later others do much better."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from megavideo.model.attention.kernel import Inputs, Lengths


@dataclass(frozen=True)
class Fa2:
    """`torch.ops.torch_attn._varlen_attn`, bf16 and fp16; rows past the last segment are left unwritten."""

    name: ClassVar[str] = "fa2"

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Lengths, keys: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel.attend`."""
        out, lse, _ = torch.ops.torch_attn._varlen_attn(
            query,
            key,
            value,
            queries.cu_seqlens,
            keys.cu_seqlens,
            queries.longest,
            keys.longest,
            is_causal=False,
            scale=query.shape[-1] ** -0.5,
        )
        # queries without keys have +inf there
        return out.contiguous(), lse.masked_fill_(lse == torch.inf, -torch.inf)

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
        dq, dk, dv = torch.ops.torch_attn._varlen_attn_backward(
            grad,
            query,
            key,
            value,
            out.contiguous(),
            lse,
            queries.cu_seqlens,
            keys.cu_seqlens,
            queries.longest,
            keys.longest,
            is_causal=False,
            rng_state=torch.zeros(2, dtype=torch.uint64, device=grad.device),  # without dropout never read
            scale=query.shape[-1] ** -0.5,
        )
        return dq.contiguous(), dk.contiguous(), dv.contiguous()


def load() -> Fa2:
    """Register its operators. Raises ImportError where torch has none."""
    importlib.import_module("torch.nn.attention.varlen")
    return Fa2()
