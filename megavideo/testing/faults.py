"""Deliberate faults in single reductions, each a context manager for a process: parity must catch every one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from megavideo.model.dit import Hidden
from megavideo.parallel.engines import pipeline
from megavideo.parallel.layers import ring, tensor_layers
from megavideo.parallel.layers.layer_set import ParallelLayers
from megavideo.parallel.processes.mesh import ProcessMesh


@contextmanager
def no_sequence_sum() -> Iterator[None]:
    """Sequence parallel without the sum of the gradients of what each rank applies to its own tokens."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(ParallelLayers, "over_tokens", lambda self, shared: shared))
        stack.enter_context(patch.object(tensor_layers, "sum_gradients", lambda shared, group: shared))
        yield


@contextmanager
def no_sum_for_one_bias() -> Iterator[None]:
    """Sequence parallel without that sum for the biases of row layers alone."""

    def only_for_others(shared: torch.Tensor, group: Any) -> torch.Tensor:
        is_row_bias = shared.ndim == 1 and not hasattr(shared, "allreduce")
        return shared if not is_row_bias else original(shared, group)

    original = tensor_layers.sum_gradients
    with patch.object(tensor_layers, "sum_gradients", only_for_others):
        yield


@contextmanager
def no_context_scale() -> Iterator[None]:
    """Context parallel whose loss is not scaled by cp against the engine's mean over the data axis."""
    with patch.object(ProcessMesh, "loss_replicas", property(lambda mesh: mesh.dp)):
        yield


@contextmanager
def no_stage_sum() -> Iterator[None]:
    """A pipeline whose stages do not add up the gradient of the text that all of them attend to."""
    original = pipeline._from_hidden

    def without_later_stages(hidden: Hidden) -> tuple[torch.Tensor, ...]:
        out = original(hidden)
        text = next(t for t in out if t is hidden.text)
        return tuple(_WithoutGradient.apply(t) if t is text else t for t in out)

    with patch.object(pipeline, "_from_hidden", without_later_stages):
        yield


@contextmanager
def no_ring_return() -> Iterator[None]:
    """A ring whose first step's gradients of keys and values come back as zeros."""
    original = ring._send_gradients

    def first_step_lost(found: torch.Tensor | None, key: torch.Tensor, plan: ring.RingPlan, step: int) -> Any:
        return original(found * 0 if found is not None and step == 1 else found, key, plan, step)

    with patch.object(ring, "_send_gradients", first_step_lost):
        yield


@contextmanager
def no_zero_average() -> Iterator[None]:
    """ZeRO whose ranks keep their own gradients in place of the average."""
    from megavideo.parallel.engines.deepspeed import load_deepspeed

    communication = load_deepspeed().comm

    def scalars_only(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            return original(tensor, *arguments, **options) if tensor.numel() == 1 else None

        return call

    with ExitStack() as stack:
        for name in ("all_reduce", "reduce"):
            stack.enter_context(patch.object(communication, name, scalars_only(getattr(communication, name))))
        yield


class _WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.zeros_like(grads[0])
