"""The prediction of a live model for a pack, under any layout, without a trace in what training goes on with.

Stages of a pipeline are walked by hand: the engine's own evaluation takes packs of one shape only, at least `2 pp` of
them under DualPipeV, and waits for all processes before each batch.

Shape legend: N tokens of a pack, n own tokens of a rank, M text tokens, K segments, P patch width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megavideo.model.dit import DiT, Hidden
from megavideo.model.pack_index import PackFacts
from megavideo.parallel.engines.engine import Engine
from megavideo.types import PackedBatch


def predict(engine: Engine, pack: PackedBatch) -> torch.Tensor | None:
    """The prediction [n, P] for this rank's own tokens of `pack`; None on a rank whose stages have no head.

    A collective call of the ranks that train a pack together, which give the same pack, on the engine's device and in
    its precision; under ZeRO-3 of all ranks of the data axis. N divides by the ranks that share tokens out. Packs may
    differ in shape from those of training.

    No rank waits for the last stage, so that calls in a row fill a 1F1B pipeline.
    """
    with torch.no_grad(), magnitudes_kept(engine.deepspeed.module):
        if engine.plan.mesh.pp > 1:
            return _through_stages(engine, pack)
        prediction: torch.Tensor = engine.deepspeed(pack)
        return prediction


def predict_whole(engine: Engine, pack: PackedBatch) -> torch.Tensor:
    """The prediction [N, P], float32, for all tokens of `pack`, the same on every rank that calls; as `predict` else.

    Rows of padding tokens have no meaning.
    """
    mesh = engine.plan.mesh
    own = predict(engine, pack)
    whole = torch.zeros(pack.tokens.shape, dtype=torch.float32, device=pack.tokens.device)
    if own is not None and (mesh.sp or mesh.tp_rank == 0):  # else every tp rank has the same tokens
        whole[mesh.own_tokens(whole.shape[0])] = own.float()
    if engine.plan.groups.model.size() > 1:
        # each row comes from one rank, so that the sum is exact: a gather and a broadcast in one
        dist.all_reduce(whole, group=engine.plan.groups.model)
    return whole


def token_multiple(engine: Engine) -> int:
    """What N must divide by in packs made for `predict`: ranks that share tokens, and rows of an FP8 product."""
    mesh = engine.plan.mesh
    return mesh.cp * (mesh.tp if mesh.sp else 1) * (1 if engine.plan.layers.fp8 == "none" else 16)


@contextmanager
def magnitudes_kept(module: nn.Module) -> Iterator[None]:
    """FP8's delayed scales are left as they are: passes inside the block enter nothing into their history.

    Without gradient Transformer Engine updates no scale, but each product notes its largest magnitudes in the first row
    of its layer's history, from which the next training step would take them.
    """
    before = {id(history): history[0].clone() for history in _histories(module)}
    try:
        yield
    finally:
        for history in _histories(module):
            row = before.get(id(history))
            # a layer that had not run yet begins with zeros
            history[0] = 0.0 if row is None else row


def _histories(module: nn.Module) -> Iterator[torch.Tensor]:
    for layer in module.modules():
        meta: dict[str, Any] = getattr(layer, "fp8_meta", {})
        history = getattr(meta.get("scaling_fwd"), "amax_history", None)
        if history is not None:
            yield history


def _through_stages(engine: Engine, pack: PackedBatch) -> torch.Tensor | None:
    """This rank's part of a pass through all stages, in their order."""
    here, owners, held = engine.plan.mesh.pp_rank, _owners(engine), _held_stages(engine)
    out: PackedBatch | Hidden | torch.Tensor = pack
    for stage, owner in enumerate(owners):
        if owner != here:
            continue
        dit = held.pop(0)
        if stage > 0 and owners[stage - 1] != here:
            out = _receive(engine, pack, dit, owners[stage - 1])
        assert not isinstance(out, torch.Tensor), "the last stage is the last of its rank"
        out = dit.stage(out)
        if isinstance(out, Hidden) and owners[stage + 1] != here:
            _send(engine, out, owners[stage + 1])
    return out if isinstance(out, torch.Tensor) else None


def _owners(engine: Engine) -> list[int]:
    """The pipeline rank of each stage: under DualPipeV down and up again."""
    down = list(range(engine.plan.mesh.pp))
    return down + down[::-1] if engine.plan.layout.pp_schedule == "dualpipev" else down


def _held_stages(engine: Engine) -> list[DiT]:
    """The stages of this rank, in the order of their blocks."""
    stages = [module for module in engine.deepspeed.module.modules() if isinstance(module, DiT)]
    return sorted(stages, key=lambda dit: min(int(number) for number in dit.blocks))


def _send(engine: Engine, hidden: Hidden, pp_rank: int) -> None:
    peer = _peer(engine, pp_rank)
    for values in _parts(hidden):
        dist.send(values.contiguous(), peer, group=engine.plan.groups.model)


def _receive(engine: Engine, pack: PackedBatch, dit: DiT, pp_rank: int) -> Hidden:
    """What the stage before hands on. Its shapes, and the pack's facts, follow from the pack."""
    rows, width = 2 * pack.grid.shape[0], dit.config.width
    own = engine.plan.mesh.own_tokens(pack.tokens.shape[0])
    text = engine.plan.mesh.own_text(pack.text.shape[0])
    image = None if pack.image is None else engine.plan.mesh.own_text(pack.image.shape[0] * pack.image.shape[1])

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=pack.tokens.dtype, device=pack.tokens.device)

    hidden = Hidden(
        x=empty(own.stop - own.start, width),
        time=empty(rows, width),
        modulation=empty(rows, 6, width) if dit.config.modulation == "adaln" else None,
        text=empty(text.stop - text.start, width),
        facts=PackFacts.of(pack),
        image=None if image is None else empty(image.stop - image.start, width),
    )
    peer = _peer(engine, pp_rank)
    for values in _parts(hidden):
        dist.recv(values, peer, group=engine.plan.groups.model)
    return hidden


def _parts(hidden: Hidden) -> tuple[torch.Tensor, ...]:
    tables = (hidden.time,) if hidden.modulation is None else (hidden.time, hidden.modulation)
    image = () if hidden.image is None else (hidden.image,)
    return hidden.x, *tables, hidden.text, *image


def _peer(engine: Engine, pp_rank: int) -> int:
    """The rank with this one's tokens and shards at another place of the pipeline."""
    mesh = engine.plan.mesh
    return mesh.rank_at({**mesh.place(), "pp": pp_rank})
