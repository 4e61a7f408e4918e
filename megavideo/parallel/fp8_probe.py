"""How far FP8 departs from bf16 on one batch: loss, gradients, and the parameter whose gradient departs most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from megavideo.errors import NumericsError
from megavideo.parallel.layers.fp8 import emulated_fp8
from megavideo.types import PackedBatch


@dataclass(frozen=True)
class ProbeReport:
    """FP8 beside bf16 with the same weights and batch.

    Differences are relative: |loss8 - loss16| / loss16, and |g8 - g16| / |g16| in the Euclidean norm, over all
    parameters and for the worst one. `gradient_cosine` is the cosine between the two gradients. `layers_fp8` of
    `layers` linear layers ran in FP8.
    """

    loss_bf16: float
    loss_fp8: float
    loss_difference: float
    gradient_difference: float
    gradient_cosine: float
    worst_parameter: str
    worst_difference: float
    layers_fp8: int
    layers: int


def fp8_probe(
    build_model: Callable[[], nn.Module], batch: PackedBatch, target: torch.Tensor, exclude: Sequence[str]
) -> ProbeReport:
    """Compare FP8 with bf16 on `batch` by the mean square error of the prediction from `target` [N, P].

    `build_model` makes the model with the weights to probe, on the batch's device. Its Transformer Engine layers run
    in FP8 where it has any; else plain torch's numeric model of current scaling stands for its `nn.Linear` layers, but
    those that `exclude` names. Weights are rounded to bf16. Raises NumericsError where FP8 changed nothing at all.
    """
    model = build_model().to(torch.bfloat16)
    engine_layers = [module for module in model.modules() if hasattr(module, "in_fp8")]
    if engine_layers:
        count, total = sum(bool(layer.in_fp8) for layer in engine_layers), len(engine_layers)
        loss8, grads8 = _loss_and_gradients(model, batch, target)
        with _bf16(engine_layers):
            loss16, grads16 = _loss_and_gradients(model, batch, target)
    else:
        total = sum(isinstance(module, nn.Linear) for module in model.modules())
        loss16, grads16 = _loss_and_gradients(model, batch, target)
        with emulated_fp8(model, exclude) as names:
            count = len(names)
            loss8, grads8 = _loss_and_gradients(model, batch, target)
    differences = {name: (grads8[name] - grads16[name]).norm().item() for name in grads16}
    if loss8 == loss16 and not any(differences.values()):
        raise NumericsError(
            f"FP8 and bf16 gave the same loss and gradients to the last bit with {count} layers in FP8: FP8 was not in "
            "effect. Remedy: enter `layers.precision()` where the layers are called, or name fewer in fp8_exclude"
        )
    norms = {name: gradient.norm().item() for name, gradient in grads16.items()}
    # parameters behind a zero weight have no gradient to compare
    relative = {name: differences[name] / norm for name, norm in norms.items() if norm > 0}
    worst = max(relative, key=lambda name: relative[name], default="")
    flat8, flat16 = (torch.cat([g.flatten() for g in grads.values()]) for grads in (grads8, grads16))
    return ProbeReport(
        loss_bf16=loss16,
        loss_fp8=loss8,
        loss_difference=abs(loss8 - loss16) / loss16,
        gradient_difference=((flat8 - flat16).norm() / flat16.norm()).item(),
        gradient_cosine=torch.cosine_similarity(flat8, flat16, dim=0).item(),
        worst_parameter=worst,
        worst_difference=relative.get(worst, 0.0),
        layers_fp8=count,
        layers=total,
    )


@contextmanager
def _bf16(layers: Sequence[nn.Module]) -> Iterator[None]:
    before = [layer.in_fp8 for layer in layers]
    for layer in layers:
        layer.in_fp8 = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.in_fp8 = value


def _loss_and_gradients(
    model: nn.Module, batch: PackedBatch, target: torch.Tensor
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss over tokens that belong to a segment, and float64 gradients by name."""
    model.zero_grad(set_to_none=True)
    num_tokens = int(batch.cu_seqlens[-1])
    prediction = model(batch)
    loss = (prediction.float() - target)[:num_tokens].square().mean()
    loss.backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.item(), gradients
