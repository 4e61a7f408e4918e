"""cuDNN's attention through its own Python package (nvidia-cudnn-frontend), on Hopper and Blackwell.

cuDNN makes a plan for each number of segments, bound on the lengths, and set of strides, of which 128 are kept. So the
bounds are rounded up to powers of two.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from megavideo.model.attention.kernel import Inputs, Lengths
from megavideo.parallel.attention.lengths import rounded_up, without_keys

# cuDNN refuses a bound of one token on both sides
_LEAST = 128


@dataclass(frozen=True)
class Cudnn:
    """`torch.ops.cudnn.sdpa_fwd` and `sdpa_bwd`, bf16 and fp16; rows past the last segment are left unwritten.

    The backward pass holds the log-sum-exp once more, as [segments, A, bound] float32. Its plans depend on the number
    of tokens too, rounded up to 64, so that the blocks of a ring, which differ from pack to pack, need new ones.
    """

    name: ClassVar[str] = "cudnn"

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Lengths, keys: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel.attend`."""
        out, stats = torch.ops.cudnn.sdpa_fwd(
            query,
            key,
            value,
            query.shape[-1] ** -0.5,
            cu_seqlens_q=queries.cu_seqlens,
            cu_seqlens_kv=keys.cu_seqlens,
            max_seqlen_q=rounded_up(queries.longest, _LEAST),
            max_seqlen_kv=rounded_up(keys.longest, _LEAST),
            return_lse=True,
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
        from cudnn.sdpa.fwd.torch_op import thd_lse_to_padded

        longest = rounded_up(queries.longest, _LEAST)
        # tokens past the last segment would be written outside of it
        padded = thd_lse_to_padded(lse.transpose(0, 1)[: queries.total], queries.cu_seqlens, longest)
        query, key, value = inputs
        dq, dk, dv = torch.ops.cudnn.sdpa_bwd(
            grad,
            query,
            key,
            value,
            out,
            padded,
            query.shape[-1] ** -0.5,
            cu_seqlens_q=queries.cu_seqlens,
            cu_seqlens_kv=keys.cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=rounded_up(keys.longest, _LEAST),
            is_deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return dq, dk, dv


def load() -> Cudnn:
    """Register its operators. Raises ImportError where it does not load."""
    importlib.import_module("cudnn.sdpa.fwd.torch_op")
    return Cudnn()
