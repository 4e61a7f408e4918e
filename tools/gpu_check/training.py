"""Three training steps of a small DiT with local and Transformer Engine layers, recomputation, and the parity probe."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from harness import Checks, difference
from linear import MakeLayers

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.precision import Fp8Kind, LayersConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.dit import DiT
from megavideo.model.init import init_weights
from megavideo.model.layers import Layers, LocalLayers
from megavideo.parallel.fp8_probe import fp8_probe
from megavideo.types import Grid, PackedBatch

CONFIG = ModelConfig(layers=4, width=256, ffn=1024, heads=4, latent_channels=16, text_dim=128, time_dim=256)
GRIDS = (Grid(5, 8, 8), Grid(1, 10, 12), Grid(2, 6, 6))
TOKENS, TEXT, STEPS = 512, 64, 3
BF16_LIMIT, FP8_LIMIT = 1e-2, 5e-2  # relative difference of each step's loss
RECOMPUTE_LIMIT = 1e-2  # of gradients; a recomputation in bf16 would show by several per cent
PROBE_LIMIT = 1e-1  # relative difference of gradients; on a CPU the numeric model gives 3e-2


def check_training(checks: Checks, make: MakeLayers, kinds: tuple[Fp8Kind, ...], device: torch.device) -> None:
    """Losses of three steps, gradients with and without recomputation, and FP8 beside bf16 on the first batch."""
    batch, target = _pack(device)
    te: Callable[[Fp8Kind], Layers] = lambda kind: make(LayersConfig(engine="te", fp8=kind))  # noqa: E731
    local: list[float] = []

    def train_local() -> float:
        local.extend(_losses(LocalLayers(), batch, target))
        return local[-1] / local[0]

    checks.run("three steps, local layers, bf16: last loss over first", train_local, 1.0)
    for kind in ("none", *(kind for kind in kinds if kind != "delayed")):
        label, limit = ("bf16", BF16_LIMIT) if kind == "none" else (f"FP8 {kind}", FP8_LIMIT)
        checks.run(
            f"three steps, TE, {label}: losses against local bf16",
            lambda kind=kind: max(abs(a - b) / b for a, b in zip(_losses(te(kind), batch, target), local, strict=True)),
            limit,
        )
    for kind in ("none", *kinds[:1]):
        label = "bf16" if kind == "none" else f"FP8 {kind}"
        checks.run(
            f"TE, {label}: gradients with recomputation against without",
            lambda kind=kind: difference(
                _gradient(te(kind), batch, target, RecomputeConfig(kind="full")),
                _gradient(te(kind), batch, target, None),
            ),
            RECOMPUTE_LIMIT,
        )
    if "current" in kinds:
        checks.run("FP8 beside bf16 on one batch: gradients", lambda: _probe(te("current"), batch, target), PROBE_LIMIT)


def _probe(layers: Layers, batch: PackedBatch, target: torch.Tensor) -> float:
    report = fp8_probe(lambda: _model(layers, batch.tokens.device), batch, target, ())
    print(f"      {report}", flush=True)
    return report.gradient_difference


def _model(layers: Layers, device: torch.device, recompute: RecomputeConfig | None = None) -> DiT:
    model = DiT(CONFIG, layers, recompute=recompute)
    init_weights(model, seed=0)
    with torch.no_grad():
        assert model.head is not None
        # starts at zero, behind which no other parameter has a gradient
        model.head.proj.weight.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(1))
    return model.to(device, torch.bfloat16)


def _losses(layers: Layers, batch: PackedBatch, target: torch.Tensor) -> list[float]:
    model = _model(layers, batch.tokens.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = _loss(model, batch, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _gradient(
    layers: Layers, batch: PackedBatch, target: torch.Tensor, recompute: RecomputeConfig | None
) -> torch.Tensor:
    model = _model(layers, batch.tokens.device, recompute)
    _loss(model, batch, target).backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def _loss(model: DiT, batch: PackedBatch, target: torch.Tensor) -> torch.Tensor:
    num_tokens = sum(grid.num_tokens for grid in GRIDS)
    return (model(batch).float() - target)[:num_tokens].square().mean()


def _pack(device: torch.device) -> tuple[PackedBatch, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    lengths, texts = [grid.num_tokens for grid in GRIDS], [7, 20, 12]
    count = len(GRIDS)

    def ends(sizes: list[int]) -> torch.Tensor:
        return torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32, device=device)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    batch = PackedBatch(
        tokens=random(TOKENS, CONFIG.patch_dim).to(device, torch.bfloat16),
        cu_seqlens=ends(lengths),
        grid=torch.tensor([[grid.t, grid.h, grid.w] for grid in GRIDS], device=device),
        text=random(TEXT, CONFIG.text_dim).to(device, torch.bfloat16),
        cu_seqlens_text=ends(texts),
        fps=torch.full((count,), 8.0, device=device),
        timestep=torch.tensor([100.0, 500.0, 900.0], device=device),
        condition_mask=torch.zeros(TOKENS, dtype=torch.bool, device=device),
        sample_ids=("a", "b", "c"),
        visits=(0,) * count,
    )
    return batch, random(TOKENS, CONFIG.patch_dim).to(device)
