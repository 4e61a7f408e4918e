"""Gradients of a small DiT on the device beside float64 on the CPU: recomputed, offloaded, compiled.

What is asked is that a parameter's gradient is no further from the exact one than a few times bf16 on the CPU is: the
rounding is the number format's, and a fault is far larger.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from harness import Checks, difference
from one_rank import local_layers
from small_pack import given, small_dit

from megavideo.config.schema.train import RecomputeConfig

_PARTS = ("self_attention", "cross_attention", "gelu")
RECOMPUTES: Mapping[str, RecomputeConfig | None] = {
    "nothing recomputed": None,
    "selective": RecomputeConfig(kind="selective", parts=_PARTS),
    "selective, offloaded": RecomputeConfig(kind="selective", parts=_PARTS, offload=True),
    "full": RecomputeConfig(kind="full"),
    "full, offloaded": RecomputeConfig(kind="full", offload=True),
}
# offload inside a block is not among what is compiled: it breaks a block into many graphs, which would take a minute
_EAGER_ONLY = ("selective, offloaded",)
TIMES_LIMIT = 3.0  # over the error of bf16 on the CPU
AGAIN_LIMIT = 1e-2  # between eager passes that differ in what is computed again: sums in another order at most
Gradients = dict[str, torch.Tensor]


def check_gradients(checks: Checks, device: torch.device, backend: str) -> None:
    """Every kind of recomputation, eager and compiled by `backend`."""
    cpu = torch.device("cpu")
    exact = _gradients(cpu, torch.float64, None)
    rounded = _gradients(cpu, torch.bfloat16, None)
    plain: list[Gradients] = []
    for compiled in (None, backend):
        for name, recompute in RECOMPUTES.items():
            if compiled is not None and name in _EAGER_ONLY:
                continue
            label = f"gradients, {'eager' if compiled is None else 'compiled'}, {name}"

            def beside_exact(recompute: RecomputeConfig | None = recompute, compiled: str | None = compiled) -> float:
                plain.append(_gradients(device, torch.bfloat16, recompute, compiled))
                return worst_ratio(plain[-1], rounded, exact)

            checks.run(f"{label}: times the error of bf16", beside_exact, TIMES_LIMIT)
            if compiled is None and recompute is not None:
                checks.run(f"{label}: beside none recomputed", lambda: _apart(plain[-1], plain[0]), AGAIN_LIMIT)


def worst_ratio(found: Gradients, rounded: Gradients, exact: Gradients) -> float:
    """The largest error of a parameter's gradient, relative to the same of `rounded`, or to that over all parameters.

    Not a number where any gradient is none.
    """
    assert found.keys() == exact.keys(), f"parameters without gradient: {sorted(exact.keys() - found.keys())}"
    overall = difference(_flat(rounded), _flat(exact))
    ratios = [
        difference(found[name], exact[name]) / max(overall, difference(rounded[name], exact[name])) for name in exact
    ]
    return torch.tensor(ratios).max().item()  # unlike Python's, it keeps what is not a number


def _gradients(
    device: torch.device, dtype: torch.dtype, recompute: RecomputeConfig | None, compiled: str | None = None
) -> Gradients:
    """By parameter, in float64 on the CPU."""
    model = small_dit(local_layers(device), device, dtype, recompute)
    if compiled is not None:
        for block in model.blocks.values():
            block.compile(backend=compiled, dynamic=False)
    batch = given(device, dtype)
    batch.loss(model(batch.pack)).backward()
    return {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}


def _flat(gradients: Gradients) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def _apart(found: Gradients, other: Gradients) -> float:
    return difference(_flat(found), _flat(other))
