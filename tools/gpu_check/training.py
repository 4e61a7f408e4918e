"""Three training steps of a small DiT with local and Transformer Engine layers, recomputation, and the parity probe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import Checks, difference
from linear import MakeLayers
from one_rank import local_layers
from small_pack import Given, given, small_dit

from megavideo.config.schema.precision import Fp8Kind, LayersConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.layers import Layers
from megavideo.parallel.fp8_probe import fp8_probe

STEPS = 3
BF16_LIMIT, FP8_LIMIT = 1e-2, 5e-2  # relative difference of each step's loss
RECOMPUTE_LIMIT = 1e-2  # of gradients; a recomputation in bf16 would show by several per cent
PROBE_LIMIT = 1e-1  # relative difference of gradients; on a CPU the numeric model gives 3e-2


def check_training(checks: Checks, make: MakeLayers, kinds: tuple[Fp8Kind, ...], device: torch.device) -> None:
    """Losses of three steps, gradients with and without recomputation, and FP8 beside bf16 on the first batch."""
    batch = given(device, torch.bfloat16)
    te: Callable[[Fp8Kind], Layers] = lambda kind: make(LayersConfig(engine="te", fp8=kind))  # noqa: E731
    local: list[float] = []

    def train_local() -> float:
        local.extend(_losses(local_layers(device), batch))
        return local[-1] / local[0]

    def te_losses(kind: Fp8Kind) -> float:
        pairs = zip(_losses(te(kind), batch), local, strict=True)
        return torch.tensor([abs(a - b) / b for a, b in pairs]).max().item()  # keeps what is not a number

    def recomputed(kind: Fp8Kind) -> float:
        again, kept = RecomputeConfig(kind="full"), None
        return difference(_gradient(te(kind), batch, again), _gradient(te(kind), batch, kept))

    checks.run("three steps, local layers, bf16: last loss over first", train_local, 1.0)
    stepped: tuple[Fp8Kind, ...] = ("none", *(kind for kind in kinds if kind != "delayed"))
    for kind in stepped:
        label, limit = ("bf16", BF16_LIMIT) if kind == "none" else (f"FP8 {kind}", FP8_LIMIT)
        checks.run(
            f"three steps, TE, {label}: losses against local bf16",
            partial(te_losses, kind),
            limit,
        )
    some: tuple[Fp8Kind, ...] = ("none", *kinds[:1])
    for kind in some:
        label = "bf16" if kind == "none" else f"FP8 {kind}"
        checks.run(
            f"TE, {label}: gradients with recomputation against without", partial(recomputed, kind), RECOMPUTE_LIMIT
        )
    if "current" in kinds:
        checks.run("FP8 beside bf16 on one batch: gradients", lambda: _probe(te("current"), batch), PROBE_LIMIT)


def _probe(layers: Layers, batch: Given) -> float:
    device = batch.pack.tokens.device
    report = fp8_probe(lambda: small_dit(layers, device, torch.bfloat16), batch.pack, batch.target, ())
    print(f"      {report}", flush=True)
    return report.gradient_difference


def _losses(layers: Layers, batch: Given) -> list[float]:
    model = small_dit(layers, batch.pack.tokens.device, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = batch.loss(model(batch.pack))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _gradient(layers: Layers, batch: Given, recompute: RecomputeConfig | None) -> torch.Tensor:
    model = small_dit(layers, batch.pack.tokens.device, torch.bfloat16, recompute)
    batch.loss(model(batch.pack)).backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
