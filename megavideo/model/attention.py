"""Attention inside the segments of a pack, on CPU and GPU, with its log-sum-exp.

Shape legend: N query tokens, M key tokens, K segments, A heads, h head width.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        return torch.zeros_like(query), query.new_zeros(query.shape[1], query.shape[0])
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
