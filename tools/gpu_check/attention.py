"""Attention on packs, forward and backward, against float64 segment by segment."""

from __future__ import annotations

import itertools

import torch
from harness import Checks, difference

from megavideo.model.attention import Segments, attend_varlen, attend_varlen_backward

HEADS, HEAD_DIM = 4, 128
VIDEO, TEXT = (700, 33, 0, 512, 1), (77, 5, 0, 128, 16)
PADDING = 50
OUT_LIMIT, GRAD_LIMIT = 1e-2, 2e-2  # of bf16 results
LSE_LIMIT = 1e-3  # absolute: it is kept in float32
Tensors = tuple[torch.Tensor, ...]


def check_attention(checks: Checks, device: torch.device) -> None:
    """Self-attention, and attention to the segment's text."""
    for name, lengths in (("self", VIDEO), ("text", TEXT)):
        _check_case(checks, name, lengths, device)


def _check_case(checks: Checks, name: str, lengths: tuple[int, ...], device: torch.device) -> None:
    torch.manual_seed(0)
    queries, keys = _segments(VIDEO, device), _segments(lengths, device)
    rows = (sum(VIDEO) + PADDING, sum(lengths) + PADDING, sum(lengths) + PADDING)
    inputs = tuple(torch.randn(n, HEADS, HEAD_DIM).to(device, torch.bfloat16).requires_grad_() for n in rows)
    weight = torch.randn(rows[0], HEADS, HEAD_DIM).to(device, torch.bfloat16)
    exact = _reference(inputs, weight, VIDEO, lengths)
    found: list[torch.Tensor] = []

    def output() -> float:
        found.extend(_run(inputs, weight, queries, keys))
        return difference(found[0], exact[0])

    def backward() -> float:
        gradients = attend_varlen_backward(weight, _detached(inputs), found[0], found[1], queries, keys)
        return max(difference(a, b) for a, b in zip(gradients, exact[2:], strict=True))

    checks.run(f"attention ({name}): output", output, OUT_LIMIT)
    checks.run(f"attention ({name}): log-sum-exp", lambda: _largest(found[1], exact[1]), LSE_LIMIT)
    for i, tensor in enumerate(("query", "key", "value"), 2):
        label = f"attention ({name}): gradient of {tensor}"
        checks.run(label, lambda i=i: difference(found[i], exact[i]), GRAD_LIMIT)
    checks.run(f"attention ({name}): backward from output and log-sum-exp", backward, GRAD_LIMIT)


def _segments(lengths: tuple[int, ...], device: torch.device) -> Segments:
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    return Segments.of(ends, sum(lengths) + PADDING)


def _run(inputs: Tensors, weight: torch.Tensor, queries: Segments, keys: Segments) -> Tensors:
    out, lse = attend_varlen(*inputs, queries, keys)
    return (out.detach(), lse.detach(), *torch.autograd.grad(out, inputs, weight))


def _reference(inputs: Tensors, weight: torch.Tensor, video: tuple[int, ...], keys: tuple[int, ...]) -> Tensors:
    """Output, log-sum-exp and gradients in float64; zeros where a row belongs to no segment."""
    query, key, value = (tensor.detach().double().requires_grad_() for tensor in inputs)
    out = torch.zeros_like(query)
    lse = torch.zeros(HEADS, query.shape[0], dtype=torch.float64, device=query.device)
    pieces, q0, k0 = [], 0, 0
    for num_queries, num_keys in zip(video, keys, strict=True):
        q, k, v = query[q0 : q0 + num_queries], key[k0 : k0 + num_keys], value[k0 : k0 + num_keys]
        if num_queries and num_keys:
            scores = torch.einsum("nah,mah->anm", q, k) / HEAD_DIM**0.5
            lse[:, q0 : q0 + num_queries] = scores.detach().logsumexp(-1)
            pieces.append(torch.einsum("anm,mah->nah", scores.softmax(-1), v))
        q0, k0 = q0 + num_queries, k0 + num_keys
    attended = torch.cat(pieces)
    gradients = torch.autograd.grad(attended, (query, key, value), weight[: attended.shape[0]].double())
    out[: attended.shape[0]] = attended.detach()
    return (out.detach(), lse, *gradients)


def _detached(inputs: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = (tensor.detach() for tensor in inputs)
    return query, key, value


def _largest(found: torch.Tensor, exact: torch.Tensor) -> float:
    assert found.shape == exact.shape, f"shape {tuple(found.shape)}, not {tuple(exact.shape)}"
    return (found.double() - exact).abs().max().item()
