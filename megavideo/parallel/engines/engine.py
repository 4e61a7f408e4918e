"""DeepSpeed's engine around the model: what every engine here can do, and the one without a pipeline.

An engine averages gradients over the data axis, clips by the norm over the whole model, and on a non-finite norm skips
the update on every rank alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from megavideo.config.layout import Layout
from megavideo.config.schema.precision import LayersConfig
from megavideo.model.pack_index import PackBounds
from megavideo.parallel.engines.deepspeed import NO_TIMERS, initialize, take_apart
from megavideo.parallel.engines.norm import ClippedStep
from megavideo.parallel.engines.step_loss import FurtherTerms, StepLoss, TokenLoss
from megavideo.parallel.layers.sharding import Shard, shard_of
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.types import PackedBatch

# gradients reduced together, in elements, for which there is a buffer at the peak of memory: in float32 0.8 GB, where
# DeepSpeed's default takes 2; a parameter that is larger, of the presets one of dit_30b, is reduced alone
REDUCE_BUCKET_ELEMENTS = 200_000_000


@dataclass(frozen=True)
class MicroBatch:
    """A whole pack, and this process's own part of its target [n, P] and of its loss weights [n].

    `labels` are what further terms of the loss need to know of the whole pack.
    """

    pack: PackedBatch
    target: torch.Tensor
    weight: torch.Tensor
    labels: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class StepOutcome:
    """What an update did: gradient norm before clipping (infinite where not finite), and whether it was applied.

    `errors` has the own tokens' errors [n] of each micro-batch, `terms` their sums [T] of the further terms in float64;
    both are empty on a stage that forms no loss. `spike` tells, on the stages that do, that the loss was over the
    limit, which is why nothing was applied.
    """

    grad_norm: float
    applied: bool
    errors: tuple[torch.Tensor, ...]
    terms: tuple[torch.Tensor, ...] = ()
    spike: bool = False


class BaseOptimizer(Protocol):
    """A torch optimizer whose states can be made before its first update, to be filled from a checkpoint."""

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> MutableMapping[torch.Tensor, Any]:
        """The states of each parameter, by name."""
        ...

    def create_state(self, parameters: Sequence[torch.Tensor]) -> None:
        """Make the states of the given parameters, at zero steps."""
        ...

    def attach(self, engine: Engine) -> None:
        """Learn from the engine where parts of parameters lie; once, before states are made. A collective call."""
        ...

    def register_step_pre_hook(self, hook: Any) -> Any:
        """Call `hook(optimizer, args, kwargs)` before each update."""
        ...


@dataclass(frozen=True)
class EnginePlan:
    """What an engine must know besides the model: layout, place, precision, and how a step is made.

    A step accumulates `micro_steps` packs and clips at `clip` (None: not at all). `terms` are those of the loss beside
    `token_loss`. `head_dim` is the width of an attention head, on which the choice of its kernel depends.
    """

    layout: Layout
    mesh: ProcessMesh
    groups: Groups
    dtype: torch.dtype
    micro_steps: int
    clip: float | None
    token_loss: TokenLoss
    head_dim: int
    layers: LayersConfig = field(default_factory=LayersConfig)
    terms: FurtherTerms | None = None

    def deepspeed_settings(self) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        # each piece of a gradient goes to its owner alone: half the bytes of the engine's own all-reduce
        zero: dict[str, Any] = {
            "stage": self.layout.zero,
            "use_multi_rank_bucket_allreduce": False,
            "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
        }
        if self.layout.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self.micro_steps,
            # without ZeRO the clipping is ours: the engine's own does not tell the norm
            "gradient_clipping": (self.clip or 0.0) if self.layout.zero else 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": self.dtype == torch.bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
            "steps_per_print": 10**9,
            "timers": NO_TIMERS,
        }

    def model_parallel_unit(self) -> _ModelParallel | None:
        """The groups as DeepSpeed asks for them; None where its data axis is all processes."""
        return _ModelParallel(self.groups) if self.mesh.tp > 1 else None


class Engine(ABC):
    """A model under a layout: makes updates and tells what it holds."""

    base_optimizer: BaseOptimizer

    def __init__(self, plan: EnginePlan) -> None:
        self.plan = plan
        self.dtype = plan.dtype
        self.zero = plan.layout.zero
        self._clipped: ClippedStep | None = None

    def update(
        self,
        batches: Iterable[MicroBatch],
        bounds: Sequence[PackBounds],
        scale: float,
        learning_rate: float,
        limit: float | None = None,
    ) -> StepOutcome:
        """Train on the micro-batches of one step; each token's error is multiplied by `scale` before its backward.

        They are taken from `batches` one by one, each after the passes of those before it have been queued, and by
        ranks that need them alone, while `bounds` of all their packs are wanted by all. Where the sum of all tokens'
        errors over all processes exceeds `limit`, nothing is updated on any rank.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        plan = self.plan
        loss = StepLoss(plan.token_loss, plan.terms, plan.groups, plan.micro_steps, scale, limit)
        self._train_on(batches, bounds, loss)
        return self._outcome(loss)

    @abstractmethod
    def _train_on(self, batches: Iterable[MicroBatch], bounds: Sequence[PackBounds], loss: StepLoss) -> None:
        """Forward and backward passes of the micro-batches, whose losses `loss` forms, and the update."""

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters on this rank under the names of the whole model."""

    @property
    @abstractmethod
    def deepspeed(self) -> Any:
        """DeepSpeed's engine."""

    def local_parameters(self) -> Iterator[tuple[str, nn.Parameter, Shard]]:
        """Parameters on this rank, and which part of each it is."""
        mesh = self.plan.mesh
        for name, parameter in self.named_parameters():
            yield name, parameter, shard_of(parameter, mesh.tp_rank, mesh.tp)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter, Shard]]:
        """Those of `local_parameters` that are not frozen: they have states, and are in checkpoints."""
        return (row for row in self.local_parameters() if row[1].requires_grad)

    def create_state(self) -> None:
        """Make all states of the optimizer, at zero steps, so that a checkpoint can be read into them."""
        if self.zero == 3:
            self.base_optimizer.create_state(self.deepspeed.optimizer.fp32_partitioned_groups_flat)
        else:
            self.base_optimizer.create_state([p for g in self.base_optimizer.param_groups for p in g["params"]])

    def publish_weights(self) -> None:
        """Take the weights that the model computes with from the optimizer's own, which a checkpoint has just filled.

        Only ZeRO-3 needs it: there the model has no weights of its own to be filled. A collective call, at any time
        between two updates.
        """
        if self.zero == 3:
            optimizer = self.deepspeed.optimizer
            # parameters that a pass has left gathered would keep their old values
            optimizer.parameter_offload.partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            # small ones stay gathered, as after an update
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def close(self) -> None:
        """End its use, so that its memory is free once nothing refers to it; `destroy_groups` may follow."""
        take_apart(self.deepspeed)

    def num_parameters(self) -> int:
        """Parameters of the whole model; a collective call."""
        mesh = self.plan.mesh
        held = sum(
            getattr(parameter, "ds_numel", parameter.numel()) / (1 if shard.count > 1 else mesh.tp)
            for _, parameter, shard in self.local_parameters()
        )
        total = torch.tensor(held, dtype=torch.float64, device=next(iter(self.named_parameters()))[1].device)
        dist.all_reduce(total, group=self.plan.groups.replica)
        return round(float(total))

    def _take_over_clipping(self, parameters: Sequence[nn.Parameter]) -> None:
        """Without ZeRO: norm over the whole model, clipping and skipping happen just before the optimizer's step."""
        if self.zero == 0:
            self._clipped = ClippedStep(parameters, self.plan.groups, self.plan.clip)
            self.base_optimizer.register_step_pre_hook(self._clipped)

    def _outcome(self, loss: StepLoss) -> StepOutcome:
        if self._clipped is not None:
            norm, applied = self._clipped.norm, self._clipped.applied
        else:
            found = self.deepspeed.get_global_grad_norm()
            norm = 0.0 if found is None else float(found)  # a truth value would be one more read of the device
            applied = not self.deepspeed.optimizer.overflow
        return StepOutcome(norm, applied, tuple(loss.errors), tuple(loss.terms), loss.spike)


class DataEngine(Engine):
    """A model without pipeline, under ZeRO 0 to 3. `optimizer` builds the optimizer of a model."""

    def __init__(self, model: nn.Module, optimizer: Callable[[nn.Module], BaseOptimizer], plan: EnginePlan) -> None:
        super().__init__(plan)
        self.base_optimizer = optimizer(model)
        self._take_over_clipping(list(model.parameters()))
        self._engine = initialize(
            model=model,
            optimizer=self.base_optimizer,
            config=plan.deepspeed_settings(),
            mpu=plan.model_parallel_unit(),
        )
        self.module: nn.Module = self._engine.module

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The module's own names."""
        return self.module.named_parameters()

    @property
    def deepspeed(self) -> Any:
        """A DeepSpeedEngine."""
        return self._engine

    def _train_on(self, batches: Iterable[MicroBatch], bounds: Sequence[PackBounds], loss: StepLoss) -> None:
        """Each micro-batch in turn."""
        for batch in batches:
            self._engine.backward(loss.add(self._engine(batch.pack), batch.target, batch.weight, batch.labels))
            self._engine.step()


class _ModelParallel:
    """The tensor and data groups, as DeepSpeed asks a model-parallel unit for them."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.tp

    def get_model_parallel_rank(self) -> int:
        return self._groups.tp.rank()

    def get_model_parallel_world_size(self) -> int:
        return self._groups.tp.size()

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._groups.tp.size()

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.data

    def get_data_parallel_rank(self) -> int:
        return self._groups.data.rank()

    def get_data_parallel_world_size(self) -> int:
        return self._groups.data.size()
