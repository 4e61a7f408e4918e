"""Pipeline parallel: DeepSpeed's 1F1B and DualPipeV schedules over stages of the model."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from megavideo.config.layout import layout_parts
from megavideo.model.dit import DiT, Hidden
from megavideo.model.pack_index import PackBounds, PackFacts
from megavideo.parallel.engines.deepspeed import initialize, load_deepspeed, load_pipeline
from megavideo.parallel.engines.engine import BaseOptimizer, Engine, EnginePlan, MicroBatch
from megavideo.parallel.engines.step_loss import StepLoss
from megavideo.types import PackedBatch

# the last two are there only for models that take them, an image only where channels are given
_BATCH_FIELDS = (
    "tokens", "cu_seqlens", "grid", "text", "cu_seqlens_text", "fps", "timestep", "condition_mask", "given",
    "image",
)  # fmt: skip
# what DeepSpeed puts before a parameter's name, besides the stage's number
_WRAPPED = "dit."


class PipeStage(nn.Module):
    """A stage of the model in the form in which DeepSpeed hands things on: a tuple of tensors.

    `coming` holds the bounds of the packs that it has yet to see, in their order: every rank knows them on the host,
    where DeepSpeed hands on only what is on the device.
    """

    def __init__(self, build: Callable[[range], DiT], part: range) -> None:
        super().__init__()
        self.dit = build(part)
        self.coming: deque[PackBounds] = deque()

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | torch.Tensor:
        """The batch's tensors at the first stage, else a `Hidden` as a tuple; the last stage gives the prediction."""
        bounds = self.coming.popleft()
        given = _to_batch(inputs, bounds) if self.dit.embed is not None else _to_hidden(inputs, self.dit, bounds)
        out = self.dit.stage(given)
        return out if isinstance(out, torch.Tensor) else tuple(_with_gradient(part) for part in _from_hidden(out))


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

    def _train_on(self, batches: Iterable[MicroBatch], bounds: Sequence[PackBounds], loss: StepLoss) -> None:
        """All micro-batches through the schedule."""
        self._loss = loss
        for stage in (module for module in self.module.modules() if isinstance(module, PipeStage)):
            stage.coming = deque(bounds)
        self._engine.train_batch(data_iter=(_from_batch(batch) for batch in batches))

    def _module(self, build: Callable[[range], DiT], num_blocks: int) -> nn.Module:
        pipeline, layout, mesh = load_pipeline(), self.plan.layout, self.plan.mesh
        kind = pipeline.dualpipev if layout.pp_schedule == "dualpipev" else pipeline.one_f_one_b
        with redirect_stdout(io.StringIO()):  # it prints its topology
            stages: nn.Module = kind(
                layers=[pipeline.layer_spec(PipeStage, build, part) for part in layout_parts(num_blocks, layout)],
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
    inputs = tuple(value for name in _BATCH_FIELDS if (value := getattr(batch.pack, name)) is not None)
    return inputs, (batch.target, batch.weight, *batch.labels)


def _to_batch(inputs: tuple[torch.Tensor, ...], bounds: PackBounds) -> PackedBatch:
    tensors: dict[str, Any] = dict(zip(_BATCH_FIELDS, inputs, strict=False))
    return PackedBatch(**tensors, sample_ids=(), visits=(), bounds=bounds.video, text_bounds=bounds.text)


def _from_hidden(hidden: Hidden) -> tuple[torch.Tensor, ...]:
    facts = hidden.facts
    tables = (hidden.time,) if hidden.modulation is None else (hidden.time, hidden.modulation)
    image = () if hidden.image is None else (hidden.image,)
    return hidden.x, *tables, hidden.text, *image, facts.cu_seqlens, facts.cu_seqlens_text, facts.grid, facts.given


def _with_gradient(part: torch.Tensor) -> torch.Tensor:
    """DeepSpeed sends a gradient back for each tensor of real numbers, also where nothing before it is trained."""
    is_frozen = part.is_floating_point() and not part.requires_grad and torch.is_grad_enabled()
    return part.detach().requires_grad_() if is_frozen else part


def _to_hidden(inputs: tuple[torch.Tensor, ...], dit: DiT, bounds: PackBounds) -> Hidden:
    x, time, *rest = inputs
    modulation = rest.pop(0) if dit.config.modulation == "adaln" else None
    image = rest.pop(1) if dit.config.image_dim is not None else None
    text, cu_seqlens, cu_seqlens_text, grid, given = rest
    facts = PackFacts(cu_seqlens, cu_seqlens_text, grid, given, bounds)
    return Hidden(x, time, modulation, text, facts, image)
