"""Pipeline parallel: DeepSpeed's 1F1B and DualPipeV schedules over stages of the model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from megavideo.model.dit import DiT, Hidden
from megavideo.model.pack_index import PackFacts
from megavideo.parallel.engines.deepspeed import initialize, load_deepspeed, load_pipeline
from megavideo.parallel.engines.engine import BaseOptimizer, Engine, EnginePlan, MicroBatch
from megavideo.parallel.engines.step_loss import StepLoss
from megavideo.types import PackedBatch

_BATCH_FIELDS = (
    "tokens", "cu_seqlens", "grid", "text", "cu_seqlens_text", "fps", "timestep", "condition_mask",
)  # fmt: skip
# what DeepSpeed puts before a parameter's name, besides the stage's number
_WRAPPED = "dit."


def stage_parts(num_blocks: int, stages: int) -> list[range]:
    """The blocks of each stage: consecutive, as even as can be, the longer runs in the middle stages.

    The first and the last stage have the embedder and the head besides.
    """
    short, longer = divmod(num_blocks, stages)
    order = sorted(range(stages), key=lambda stage: abs(2 * stage - stages + 1))
    lengths = [short + (order.index(stage) < longer) for stage in range(stages)]
    ends = [sum(lengths[: stage + 1]) for stage in range(stages)]
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


class PipeStage(nn.Module):
    """A stage of the model in the form in which DeepSpeed hands things on: a tuple of tensors."""

    def __init__(self, build: Callable[[range], DiT], part: range) -> None:
        super().__init__()
        self.dit = build(part)

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | torch.Tensor:
        """The batch's tensors at the first stage, else a `Hidden` as a tuple; the last stage gives the prediction."""
        given = _to_batch(inputs) if self.dit.embed is not None else _to_hidden(inputs, self.dit)
        out = self.dit.stage(given)
        return out if isinstance(out, torch.Tensor) else _from_hidden(out)


class PipeEngine(Engine):
    """A model cut into stages, under ZeRO 0 or 1."""

    def __init__(
        self,
        build: Callable[[range], DiT],
        num_blocks: int,
        optimizer: Callable[[nn.Module], BaseOptimizer],
        plan: EnginePlan,
    ) -> None:
        super().__init__(plan)
        self._loss: StepLoss | None = None  # of the step under way
        # the pipeline wants to know of the process group before the engine does
        load_deepspeed().init_distributed(verbose=False)
        module = self._module(build, num_blocks)
        self.base_optimizer = optimizer(module)
        self._take_over_clipping(list(module.parameters()))
        self._engine = initialize(model=module, optimizer=self.base_optimizer, config=plan.deepspeed_settings())
        self.module: nn.Module = self._engine.module

    def close(self) -> None:
        """Also of the graphs of the last step, which it keeps, and which lead back to it."""
        super().close()
        self._engine.pipe_buffers, self._engine.loss = {}, None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names without the stage's number and wrapping."""
        for name, parameter in self.module.named_parameters():
            yield name.partition(".")[2].removeprefix(_WRAPPED), parameter

    @property
    def deepspeed(self) -> Any:
        """A PipelineEngine."""
        return self._engine

    def _train_on(self, batches: Sequence[MicroBatch], loss: StepLoss) -> None:
        """All micro-batches through the schedule."""
        self._loss = loss
        self._engine.train_batch(data_iter=(_from_batch(batch) for batch in batches))

    def _module(self, build: Callable[[range], DiT], num_blocks: int) -> nn.Module:
        pipeline, layout, mesh = load_pipeline(), self.plan.layout, self.plan.mesh
        # each DualPipeV rank holds two stages, one on the way down and one on the way up
        kind, per_rank = (pipeline.dualpipev, 2) if layout.pp_schedule == "dualpipev" else (pipeline.one_f_one_b, 1)
        with redirect_stdout(io.StringIO()):  # it prints its topology
            stages: nn.Module = kind(
                layers=[
                    pipeline.layer_spec(PipeStage, build, part) for part in stage_parts(num_blocks, per_rank * mesh.pp)
                ],
                topology=pipeline.topology(num_pp=mesh.pp, num_mp=mesh.tp, num_dp=mesh.dp * mesh.cp),
                loss_fn=self._add_to_loss,
                partition_method="uniform",
                activation_checkpoint_interval=0,
            )
        return stages

    def _add_to_loss(self, prediction: torch.Tensor, labels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """At the last stage, in the order of the micro-batches."""
        assert self._loss is not None, "the schedule runs inside an update alone"
        target, weight, *others = labels
        return self._loss.add(prediction, target, weight, others)


def _from_batch(batch: MicroBatch) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """What the first stage takes in, and what the last one forms the loss with."""
    return tuple(getattr(batch.pack, name) for name in _BATCH_FIELDS), (batch.target, batch.weight, *batch.labels)


def _to_batch(inputs: tuple[torch.Tensor, ...]) -> PackedBatch:
    return PackedBatch(**dict(zip(_BATCH_FIELDS, inputs, strict=True)), sample_ids=(), visits=())  # type: ignore[arg-type]


def _from_hidden(hidden: Hidden) -> tuple[torch.Tensor, ...]:
    facts = hidden.facts
    tables = (hidden.time,) if hidden.modulation is None else (hidden.time, hidden.modulation)
    return hidden.x, *tables, hidden.text, facts.cu_seqlens, facts.cu_seqlens_text, facts.grid, facts.given


def _to_hidden(inputs: tuple[torch.Tensor, ...], dit: DiT) -> Hidden:
    x, time, *rest = inputs
    modulation = rest.pop(0) if dit.config.modulation == "adaln" else None
    text, *facts = rest
    return Hidden(x, time, modulation, text, PackFacts(*facts))
