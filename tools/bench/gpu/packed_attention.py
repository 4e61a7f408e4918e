"""Part 3: the attention kernels side by side, forward and backward, beside torch's own on dense tensors.

Shape legend: N tokens, K segments, A heads, h head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from found_kernels import SDPA, kernels_here
from rows import Row, Value
from session import Session, spread_values
from timing import Lap, Run, Timing
from torch.nn.attention import SDPBackend, sdpa_kernel

from megavideo.model.attention.kernel import Kernel, Lengths
from megavideo.model.attention.segments import Segments

_FORWARD, _BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class AttentionCase:
    """A pack of `count` equal segments of `length` tokens each."""

    head_dim: int
    heads: int
    count: int
    length: int

    @property
    def tokens(self) -> int:
        """N."""
        return self.count * self.length

    @property
    def name(self) -> str:
        """As rows call it."""
        samples = "one clip" if self.count == 1 else f"{self.count} samples"
        return f"h {self.head_dim}, {samples} of {self.length:,}"

    @property
    def forward_flops(self) -> int:
        """Of two products."""
        return 4 * self.count * self.length**2 * self.heads * self.head_dim


def cases(session: Session) -> list[AttentionCase]:
    """Those of the widest use first: whole clips of middle length."""
    sizes = session.sizes
    return [
        AttentionCase(head_dim, sizes.attention_width // head_dim, count, tokens // count)
        for tokens in sizes.lengths
        for head_dim in sizes.head_widths
        for count in sizes.pack_counts
    ]


def measure(session: Session) -> Iterator[Row]:
    """Every case, as long as there is time."""
    kernels = {name: attention.kernel for name, attention in kernels_here(session.device).items()}
    if not kernels:
        yield session.failed("all", "kernels", f"no attention kernel for packs on {session.device.type} was found")
    for case in cases(session):
        names = [*kernels, SDPA]
        need = 3 * (len(names) + 2) * 3.5 * case.forward_flops / session.sizes.slowest_flops
        late = session.too_late(case.name, names, need)
        if late:
            yield from late
            continue
        yield from session.guarded(case.name, names, partial(_case, session, case, kernels))


def _case(session: Session, case: AttentionCase, kernels: dict[str, Kernel]) -> Iterator[Row]:
    shape = (case.tokens, case.heads, case.head_dim)
    with session.device:
        query, key, grad = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(3))
        # as in the model: a part of the product that makes all three
        value = torch.randn(case.tokens, 3, case.heads, case.head_dim, dtype=torch.bfloat16)[:, 2]
    inputs = (query, key, value)
    segments = Segments.of(range(0, case.tokens + 1, case.length), session.device)
    true = Lengths(segments.cu_seqlens, case.tokens, case.length)
    whole = Lengths(segments.cu_seqlens, case.tokens, case.tokens)
    contestants: dict[str, Run] = {}
    outputs: dict[str, torch.Tensor] = {}
    for name, kernel in kernels.items():
        contestants[name] = _packed(kernel, inputs, grad, true, outputs, name)
        if case.count > 1:
            longest = f"{name}, longest = the pack"
            contestants[longest] = _packed(kernel, inputs, grad, whole, outputs, longest)
    contestants |= _dense(session, case, inputs, grad, outputs)

    def values(name: str, timing: Timing) -> dict[str, Value | None]:
        forward, backward = timing.laps[_FORWARD], timing.laps[_BACKWARD]
        return {
            "forward_tflops": case.forward_flops / forward / 1e12,
            "backward_tflops": 2.5 * case.forward_flops / backward / 1e12,
            "forward_ms": forward * 1e3,
            "backward_ms": backward * 1e3,
            **spread_values("forward_and_backward", timing),
            "first_s": timing.first_seconds,
            "difference_from_sdpa": _difference(outputs.get(name), outputs.get(SDPA)),
        }

    yield from session.compare(case.name, contestants, values, seconds=session.left() / 6)


def _packed(
    kernel: Kernel,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    grad: torch.Tensor,
    lengths: Lengths,
    outputs: dict[str, torch.Tensor],
    name: str,
) -> Run:
    def run(lap: Lap) -> Any:
        out, lse = kernel.attend(*inputs, lengths, lengths)
        lap(_FORWARD)
        gradients = kernel.attend_backward(grad, inputs, out, lse, lengths, lengths)
        lap(_BACKWARD)
        outputs[name] = out
        return gradients

    return run


def _dense(
    session: Session,
    case: AttentionCase,
    inputs: tuple[torch.Tensor, ...],
    grad: torch.Tensor,
    outputs: dict[str, torch.Tensor],
) -> dict[str, Run]:
    """torch's attention on [K, A, length, h], which needs segments of one length: its own choice of a kernel, and two
    that it has on a GPU.
    """

    def heads_first(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(0, (case.count, case.length)).transpose(1, 2)

    dense = [heads_first(tensor).detach().requires_grad_() for tensor in inputs]
    dense_grad = heads_first(grad)

    def run(lap: Lap, name: str, backend: SDPBackend | None) -> Any:
        with nullcontext() if backend is None else sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(dense[0], dense[1], dense[2])
        lap(_FORWARD)
        gradients = torch.autograd.grad(out, dense, dense_grad)
        lap(_BACKWARD)
        outputs[name] = out.detach()
        return gradients

    backends: dict[str, SDPBackend | None] = {SDPA: None}
    if session.device.type == "cuda":
        backends |= {
            f"{SDPA}, cuDNN": SDPBackend.CUDNN_ATTENTION,
            f"{SDPA}, flash": SDPBackend.FLASH_ATTENTION,
        }
    return {name: partial(run, name=name, backend=backend) for name, backend in backends.items()}


def _difference(found: torch.Tensor | None, exact: torch.Tensor | None) -> float | None:
    """Relative, in the Euclidean norm; outputs are [N, A, h], or [K, A, length, h] as torch has them."""
    if found is None or exact is None or found is exact:
        return None
    one, other = (t.transpose(1, 2).flatten(0, 1).float() if t.ndim == 4 else t.float() for t in (found, exact))
    return ((one - other).norm() / other.norm()).item()
