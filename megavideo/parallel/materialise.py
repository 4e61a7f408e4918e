"""Parameters of a model that was built on the meta device, made one by one where they belong.

A model built under `torch.device("meta")` has shapes and marks, and no memory. Each parameter then goes its way alone:
the whole start value in float32 on the host, this rank's part of it, cast to the run's precision and copied to the
device in small pieces, and what the engine does with it. So the host never holds more than the start value of one
parameter, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from megavideo.parallel.layers.sharding import Shard, shard_of

# from a name and the whole shape to the whole start value, alike on every rank
StartValue = Callable[[str, torch.Size], torch.Tensor]
# what is done with each new parameter before the next is made
Settle = Callable[[nn.Parameter], None]
CPU = torch.device("cpu")
# elements that are cast at once, into memory that is used again: buffers of a parameter's size, freed and asked for
# time after time, leave holes in the heap that come to gigabytes
_CHUNK = 1 << 22


@torch.no_grad()
def materialise(
    module: nn.Module,
    start: StartValue,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    *,
    tp_rank: int = 0,
    tp: int = 1,
    settle: Settle | None = None,
) -> None:
    """Give `module` parameters on `device` in `dtype` with this rank's parts of the start values; it may be on meta.

    Parameters are replaced and keep their marks (`tensor_model_parallel`, `partition_dim`, `allreduce` and whatever
    else was set on them). `settle` is called with each new one, in the order of `named_parameters`, before the next is
    made: there ZeRO-3 takes its share and frees the rest.
    """
    assert not any(buffer.is_meta for buffer in module.buffers()), "no start value is known for a buffer"
    copier = _Copier(device, dtype)
    for name, parameter in list(module.named_parameters()):
        shard = shard_of(parameter, tp_rank, tp)
        shape = torch.Size(shard.whole_shape(parameter.shape))
        made = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), parameter.requires_grad)
        made.__dict__.update(parameter.__dict__)
        copier.copy(made, shard, start(name, shape), shape)
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_parameter(leaf, made)
        if settle is not None:
            settle(made)
    # one that two modules share would have been replaced in the first of them only
    assert device.type == "meta" or not any(parameter.is_meta for parameter in module.parameters())


class _Copier:
    """Copies parts of whole start values into parameters, by way of a small buffer in which they are cast."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._buffer = None if device.type == "cpu" else torch.empty(_CHUNK, dtype=dtype, device=CPU)

    def copy(self, parameter: torch.Tensor, shard: Shard, whole: torch.Tensor, shape: torch.Size) -> None:
        """Fill a parameter with its part of `whole`, which must be of `shape`."""
        assert whole.shape == shape, f"a start value is {tuple(whole.shape)} where {tuple(shape)} was asked for"
        pieces = shard.pieces(whole)
        for target, source in zip(parameter.chunk(len(pieces), shard.dim), pieces, strict=True):
            if self._buffer is None or source.is_meta:  # one without values fills a parameter on meta alone
                target.copy_(source)
                continue
            rows = max(1, _CHUNK * len(source) // source.numel())
            for some, values in zip(target.split(rows), source.split(rows), strict=True):
                some.copy_(self._buffer[: values.numel()].view(values.shape).copy_(values))
