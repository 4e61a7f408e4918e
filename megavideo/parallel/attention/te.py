"""cuDNN's attention through Transformer Engine, on Hopper and Blackwell."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from megavideo.model.attention.kernel import Inputs, Lengths
from megavideo.parallel.attention.lengths import rounded_up, without_keys

_MODULE = "transformer_engine.pytorch.cpp_extensions.fused_attn"
_LEAST = 128
# all that differs from the defaults, which are those of batches in [S, B, A, h]
_LAYOUT = {"qkv_layout": "thd_thd_thd", "o_format": "thd"}
_LAYOUT_BACKWARD = {**_LAYOUT, "do_format": "thd", "dqkv_layout": "thd_thd_thd"}


@dataclass(frozen=True)
class Te:
    """`fused_attn_fwd` and `fused_attn_bwd`, bf16 and fp16.

    Rows past the last segment come back as zeros, but for the log-sum-exp's, which are left unwritten.
    """

    name: ClassVar[str] = "te"

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Lengths, keys: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel.attend`."""
        te = _te()
        out, (stats, *_) = te.fused_attn_fwd(
            True,
            rounded_up(queries.longest, _LEAST),
            rounded_up(keys.longest, _LEAST),
            queries.cu_seqlens,
            keys.cu_seqlens,
            # it takes pointers, and reads three packed tensors from there
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            query.dtype,
            te.FusedAttnBackend["F16_arbitrary_seqlen"],
            attn_scale=query.shape[-1] ** -0.5,
            attn_mask_type="padding",
            **_LAYOUT,
        )
        lse = stats.squeeze(-1).transpose(0, 1).contiguous()
        # what it says of queries without keys is written nowhere
        return out, lse.masked_fill_(without_keys(queries, keys, lse.shape[1]), -torch.inf)

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
        te = _te()
        query, key, value = (t.contiguous() for t in inputs)
        stats = lse.transpose(0, 1).unsqueeze(-1).contiguous()
        dq, dk, dv, *_ = te.fused_attn_bwd(
            rounded_up(queries.longest, _LEAST),
            rounded_up(keys.longest, _LEAST),
            queries.cu_seqlens,
            keys.cu_seqlens,
            query,
            key,
            value,
            out.contiguous(),
            grad,
            query.dtype,
            [stats, torch.zeros(2, dtype=torch.int64, device=grad.device)],  # the second: without dropout never read
            te.FusedAttnBackend["F16_arbitrary_seqlen"],
            attn_scale=query.shape[-1] ** -0.5,
            attn_mask_type="padding",
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **_LAYOUT_BACKWARD,
        )
        return dq, dk, dv


def load() -> Te:
    """Import it, after torch, which brings cuDNN into the process. Raises ImportError where it does not load."""
    importlib.import_module("transformer_engine.pytorch")
    _te()
    return Te()


def _te() -> Any:
    return importlib.import_module(_MODULE)
