"""Deliberate faults, each a context manager for a process of a layout: parity must catch every one.

First those of a single reduction, then those of what a rank takes for its own, keeps or forgets, then those that only a
run like that of a GPU shows (`device_like=gpu`), then those of a process that does not come to its end.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from megavideo.model.attention import operator
from megavideo.model.block import FeedForward
from megavideo.model.dit import Hidden
from megavideo.optim import matrix_exchange
from megavideo.optim.adamw import EMA, AdamWWithEma
from megavideo.parallel.adapters import adapt, low_rank
from megavideo.parallel.engines import pipeline
from megavideo.parallel.engines.engine import MicroBatch
from megavideo.parallel.layers import layer_set, ring, tensor_layers
from megavideo.parallel.layers.layer_set import ParallelLayers
from megavideo.parallel.processes import groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.parity import process
from megavideo.train.step import Trainer


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
def no_adapter_sum() -> Iterator[None]:
    """Adapters without the sum of the gradients of matrices that see a share of the tokens, or of the heads, only."""
    with patch.object(low_rank, "sum_gradients", lambda shared, group: shared):
        yield


@contextmanager
def no_adapter_meeting() -> Iterator[None]:
    """Tensor parallel whose ranks keep, of the gradient of a column adapter's A x, what comes from their own heads."""
    with patch.object(adapt, "sum_gradients", lambda shared, group: shared):
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


@contextmanager
def no_norm_sum() -> Iterator[None]:
    """Tensor parallel whose query norms are of each rank's heads alone."""
    with patch.object(tensor_layers, "sum_both_ways", lambda part, group: part):
        yield


@contextmanager
def swapped_heads() -> Iterator[None]:
    """Ulysses whose heads come back in the reverse order."""
    original = layer_set.tokens_for_heads
    with patch.object(layer_set, "tokens_for_heads", lambda x, group: original(x, group).flip(1)):
        yield


@contextmanager
def swapped_runs() -> Iterator[None]:
    """Context parallel whose ranks are given the next rank's targets."""
    original = Trainer._micro_batch

    def next_run(trainer: Trainer, batch: Any) -> MicroBatch:
        cp, rank = trainer._mesh.cp, trainer._mesh.cp_rank
        return replace(original(trainer, batch), target=batch.target.chunk(cp)[(rank + 1) % cp])

    with patch.object(Trainer, "_micro_batch", next_run):
        yield


@contextmanager
def same_packs() -> Iterator[None]:
    """Data parallel whose ranks all train on the packs of rank 0."""
    original = process.step_input
    with patch.object(process, "step_input", lambda spec, step, dp_rank, dp: original(spec, step, 0, dp)):
        yield


@contextmanager
def stale_weights() -> Iterator[None]:
    """Rank 1 keeps its weights at the second update."""
    with _without_second_update(lambda optimizer, parameter: parameter.data):
        yield


@contextmanager
def stale_average() -> Iterator[None]:
    """Rank 1 keeps its moving average at the second update."""
    with _without_second_update(lambda optimizer, parameter: optimizer.state[parameter][EMA]):
        yield


@contextmanager
def shards_apart() -> Iterator[None]:
    """Muon that orthogonalises each half of a matrix by itself, as a tensor-parallel rank of two has it."""
    original = matrix_exchange.matrix_update

    def by_halves(matrix: torch.Tensor) -> torch.Tensor:
        return torch.cat([original(half) for half in matrix.chunk(2)])

    with patch.object(matrix_exchange, "matrix_update", by_halves):
        yield


@contextmanager
def unmasked_outputs() -> Iterator[None]:
    """Attention that keeps what its kernel leaves in the rows of no segment: output and log-sum-exp."""
    with patch.object(operator, "clear_outputs", lambda out, lse, queries: None):
        yield


@contextmanager
def unmasked_gradients() -> Iterator[None]:
    """Attention that keeps what its kernel leaves in the rows of no segment: gradients of query, key and value."""
    with patch.object(operator, "clear_gradients", lambda grads, queries, keys: None):
        yield


@contextmanager
def wait_forgotten() -> Iterator[None]:
    """An exchange of messages of which the first is not waited for."""

    def forget(operations: Sequence[dist.P2POp], works: list[Any]) -> list[Any]:
        return works[1:]

    with _after_messages(forget):
        yield


@contextmanager
def buffer_reused_early() -> Iterator[None]:
    """What is sent is overwritten before it has been waited for."""

    def overwrite(operations: Sequence[dist.P2POp], works: list[Any]) -> list[Any]:
        for operation in operations:
            if operation.op is dist.isend:
                operation.tensor.zero_()
        return works

    with _after_messages(overwrite):
        yield


@contextmanager
def first_call_by_some() -> Iterator[None]:
    """Groups whose first call is whatever comes first, be it one of some ranks only."""
    with patch.object(groups, "_make_communicators", lambda made, device: None):
        yield


@contextmanager
def value_read_in_pass() -> Iterator[None]:
    """A layer whose host looks at what it is given."""
    original = FeedForward.forward

    def forward(self: FeedForward, x: torch.Tensor) -> torch.Tensor:
        return original(self, x if float(x.sum()) else x + 1)

    with patch.object(FeedForward, "forward", forward):
        yield


@contextmanager
def not_finite() -> Iterator[None]:
    """A loss that is not a number."""
    original = process.squared_error
    with patch.object(process, "squared_error", lambda *given: original(*given) * float("nan")):
        yield


@contextmanager
def killed() -> Iterator[None]:
    """Rank 1 is killed, as by the kernel where memory runs out."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    yield


@contextmanager
def broken() -> Iterator[None]:
    """Rank 1 meets a defect."""
    if os.environ["RANK"] == "1":
        raise AssertionError("no two ranks agree")
    yield


@contextmanager
def hung() -> Iterator[None]:
    """Rank 1 never comes."""
    if os.environ["RANK"] == "1":
        time.sleep(1e6)
    yield


def _after_messages(change: Callable[[Sequence[dist.P2POp], list[Any]], list[Any]]) -> Any:
    """What is done as messages have been issued, which gives the works that are known from then on."""
    original = dist.batch_isend_irecv

    def issue(operations: list[dist.P2POp]) -> list[Any]:
        return change(operations, original(operations))

    return patch.object(dist, "batch_isend_irecv", issue)


def _without_second_update(values: Callable[[AdamWWithEma, torch.Tensor], torch.Tensor]) -> Any:
    """Rank 1 takes back what its second update does to some values of each parameter."""
    original, updates = AdamWWithEma.step, 0

    def step(optimizer: AdamWWithEma, closure: Any = None) -> Any:
        nonlocal updates
        updates += 1
        before = [values(optimizer, parameter).clone() for parameter in optimizer._parameters()]
        result = original(optimizer, closure)
        if updates == 2 and os.environ["RANK"] == "1":
            for parameter, old in zip(optimizer._parameters(), before, strict=True):
                values(optimizer, parameter).copy_(old)
        return result

    return patch.object(AdamWWithEma, "step", step)


class _WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.zeros_like(grads[0])
