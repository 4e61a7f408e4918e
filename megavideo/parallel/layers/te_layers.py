"""Linear layers of Transformer Engine in the places of the local column and row layers. NVIDIA GPUs only.

Everything else, norms and attention among it, is inherited. Parameters have the local layers' names, shapes and marks,
so that weights, checkpoints and start values are the same whichever layers run them.

Shape legend: n own tokens, m attended tokens (n * tp under sequence parallel, else n).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megavideo.config.schema.precision import LayersConfig
from megavideo.device.copies import DeviceCopies
from megavideo.model.attention.operator import Attention
from megavideo.parallel.layers.collectives import sum_gradients
from megavideo.parallel.layers.fp8 import build_recipe, is_excluded
from megavideo.parallel.layers.layer_set import ParallelLayers
from megavideo.parallel.layers.sharding import mark_sharded
from megavideo.parallel.machine.accelerators import check_layers
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh


def build_layers(
    config: LayersConfig,
    mesh: ProcessMesh,
    groups: Groups,
    attention: Attention,
    device: torch.device,
    *,
    copies: DeviceCopies | None = None,
) -> ParallelLayers:
    """The linear layers that `config` asks for, around `attention`. Raises ConfigError where they cannot run here."""
    check_layers(config, device)
    if config.engine == "local":
        return ParallelLayers(mesh, groups, attention, copies=copies)
    return TeLayers(mesh, groups, config, attention, copies=copies)


def keep_excluded_in_bf16(model: nn.Module, config: LayersConfig) -> tuple[str, ...]:
    """Take the Transformer Engine layers that `fp8_exclude` names out of FP8; returns the names of those left in it.

    A layer does not know its name when it is built, so this follows once the model is.
    """
    remaining: list[str] = []
    for name, module in model.named_modules():
        if hasattr(module, "in_fp8"):
            module.in_fp8 = config.fp8 != "none" and not is_excluded(name, config.fp8_exclude)  # type: ignore[assignment]
            remaining += [name] if module.in_fp8 else []
    return tuple(remaining)


class TeLayers(ParallelLayers):
    """Parallel layers whose column and row layers are Transformer Engine's, in bf16 or FP8.

    Layers held whole (embedders, modulation, head) stay local: most of them see two rows a segment, whose number does
    not divide by 16.
    """

    def __init__(
        self,
        mesh: ProcessMesh,
        groups: Groups,
        config: LayersConfig,
        attention: Attention,
        *,
        copies: DeviceCopies | None = None,
    ) -> None:
        super().__init__(mesh, groups, attention, copies=copies)
        self._tp = groups.tp if mesh.tp > 1 else None
        self._sequence_parallel = mesh.sp
        self._recipe = build_recipe(config.fp8, shared_scales=self._tp is not None)

    def column(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """[n, in_dim] -> [m, out_dim / tp]."""
        return te_column(in_dim, out_dim, blocks, self._tp, sequence_parallel=self._sequence_parallel)

    def column_of_whole(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """[M, in_dim] -> [M, out_dim / tp]; its input's gradient is summed by `over_heads`."""
        return te_column(in_dim, out_dim, blocks, self._tp, sequence_parallel=False, whole_input=True)

    def row(self, in_dim: int, out_dim: int) -> nn.Module:
        """[m, in_dim / tp] -> [n, out_dim]."""
        return te_row(in_dim, out_dim, self._tp, sequence_parallel=self._sequence_parallel)

    def precision(self) -> AbstractContextManager[None]:
        """TE's autocast, to be entered inside what is recomputed: else the recomputation would run in bf16."""
        if self._recipe is None:
            return nullcontext()
        import transformer_engine.pytorch as te

        context: Any = te.autocast(enabled=True, recipe=self._recipe, amax_reduction_group=self._tp)
        return context


def te_column(
    in_dim: int,
    out_dim: int,
    blocks: int,
    tp: dist.ProcessGroup | None,
    *,
    sequence_parallel: bool,
    whole_input: bool = False,
) -> nn.Module:
    """Column-parallel linear layer with bias; `blocks` matrices are stacked in a rank's part as in the whole.

    With `whole_input` the input is whole on every rank and its gradient is left to the caller to sum.
    """
    if tp is None:
        return _whole(_te_linear()(in_dim, out_dim, device=_device(), init_method=nn.init.zeros_))
    if whole_input:
        layer = _te_linear()(in_dim, out_dim // tp.size(), device=_device(), init_method=nn.init.zeros_)
    else:
        layer = _te_linear()(
            in_dim,
            out_dim,
            device=_device(),
            init_method=nn.init.zeros_,
            parallel_mode="column",
            tp_group=tp,
            sequence_parallel=sequence_parallel,
        )
    mark_sharded(layer.weight, 0, blocks)
    mark_sharded(layer.bias, 0, blocks)
    return layer


def te_row(in_dim: int, out_dim: int, tp: dist.ProcessGroup | None, *, sequence_parallel: bool) -> nn.Module:
    """Row-parallel linear layer with bias, which is added after the sum over the shards."""
    if tp is None:
        return _whole(_te_linear()(in_dim, out_dim, device=_device(), init_method=nn.init.zeros_))
    layer = _te_linear()(
        in_dim,
        out_dim,
        device=_device(),
        init_method=nn.init.zeros_,
        parallel_mode="row",
        tp_group=tp,
        sequence_parallel=sequence_parallel,
        return_bias=True,
    )
    mark_sharded(layer.weight, 1)
    return layer


@cache
def _te_linear() -> Any:
    """`te.Linear` with the one-tensor forward and the state of `nn.Linear`; made late, with its import."""
    import transformer_engine.pytorch as te

    class TeLinear(te.Linear):
        in_fp8: bool = True

        # no entry of its own in a state dict: only delayed scaling has any state, and begins a new history
        get_extra_state = nn.Module.get_extra_state
        set_extra_state = nn.Module.set_extra_state

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.in_fp8:
                return self._linear(x)
            with te.autocast(enabled=False):
                return self._linear(x)

        def _linear(self, x: torch.Tensor) -> torch.Tensor:
            # without `is_first_microbatch` TE casts the weights anew at each call, as another engine updates them
            out = super().forward(x)
            if not self.return_bias:
                return out
            out, bias = out
            # under sequence parallel a rank adds the bias to its own tokens only, so that its gradient is partial
            return out + (sum_gradients(bias, self.tp_group) if self.sequence_parallel else bias)

    return TeLinear


def _device() -> str:
    """The device that the surrounding `torch.device` context names; a string, by which alone TE knows meta."""
    return str(torch.get_default_device())


def _whole(layer: nn.Module) -> nn.Module:
    """Take back TE's marks, which call every weight a part of several."""
    for parameter in layer.parameters():
        parameter.tensor_model_parallel = False  # type: ignore[attr-defined]
    return layer
