"""One process of a layout under test: the production engine and trainer, watched at every update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from megavideo.config.layout import parse_layout
from megavideo.errors import NumericsError
from megavideo.model.dit import DiT
from megavideo.optim.build import build_optimizer
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.adapters.adapt import adapted
from megavideo.parallel.counting import Counter
from megavideo.parallel.engines.engine import Engine, EnginePlan
from megavideo.parallel.engines.fragments import Place, held_fragments, held_places
from megavideo.parallel.parallelize import parallelize
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.parallel.stand_in.host_reads import HostReads
from megavideo.parity.packs import start_value, step_input
from megavideo.parity.plain_terms import parity_autoencoder
from megavideo.parity.record import Piece, Record
from megavideo.parity.spec import ParitySpec
from megavideo.train.loss.loss_terms import build_loss_terms
from megavideo.train.step import Trainer, squared_error


def run_process(spec: ParitySpec, layout_text: str, launch: Launch, counter: Counter | None = None) -> Record:
    """Train the spec's steps under a layout; a collective call of all its processes. `counter` counts their sends.

    Raises NumericsError where a step is skipped, since then there is no update to compare, or a frozen parameter has
    changed, and HostReadInPass where a pass reads values that a GPU would have to be waited for.
    """
    engine = build_parity_engine(spec, layout_text, launch)
    engine.create_state()
    mesh = engine.plan.mesh
    rate = partial(learning_rate, spec.optim, num_steps=spec.steps)
    trainer = Trainer(engine, mesh, launch.device, lambda step: rate(step=step))
    watch, frozen = _GradientWatch(engine), _Frozen(engine)
    losses: list[float] = []
    terms: list[float] = []
    norms: list[float] = []
    pieces: list[Piece] = []
    if counter is not None:
        counter.start(engine.deepspeed.module)
    reads = HostReads(forbid=True) if spec.device_like == "gpu" else None
    if reads is not None:
        reads.start(engine.deepspeed.module)
    for step in range(spec.steps):
        given = step_input(spec, step, mesh.dp_rank, mesh.dp)
        with reads or nullcontext():
            report, _ = trainer.step(given)
        if not report.applied:
            found = f"loss {report.loss}, gradient norm {report.grad_norm}"
            raise NumericsError(f"step {step + 1} was skipped, as it is not finite: {found}")
        losses.append(report.loss)
        terms += report.terms.values()
        norms.append(report.grad_norm)
        pieces += watch.pieces(step, report.grad_norm, spec.optim.clip)
    frozen.check()
    sent_bytes = None if counter is None else counter.sent_bytes(mesh)
    for fragment in held_fragments(engine):
        for kind in ("weight", "ema"):
            pieces.append(
                Piece(
                    kind, spec.steps, fragment.name, fragment.shape, fragment.shard, fragment.start,
                    fragment.states[kind].clone(),
                )
            )  # fmt: skip
    host_reads = None if reads is None else reads.counts()
    return Record(
        tuple(losses), tuple(norms), tuple(pieces), tuple(terms), sent_bytes=sent_bytes, host_reads=host_reads
    )


def build_parity_engine(spec: ParitySpec, layout_text: str, launch: Launch) -> Engine:
    """The engine of a layout, through the production code."""
    layout = parse_layout(layout_text)
    mesh = ProcessMesh.of(layout, spec.heads, launch.rank, launch.world_size)
    groups = Groups.of(mesh, launch.device)
    decode = parity_autoencoder(spec).decode_for_loss if "perceptual" in spec.loss_terms else None
    plan = EnginePlan(
        layout=layout,
        mesh=mesh,
        groups=groups,
        dtype=torch.bfloat16 if spec.precision == "bf16" else torch.float32,
        micro_steps=spec.packs_per_step // mesh.dp,
        clip=spec.optim.clip,
        token_loss=squared_error,
        head_dim=spec.model.head_dim,
        layers=spec.layers,
        terms=build_loss_terms(spec.diffusion.terms, spec.model.patch, mesh, groups, decode, launch.device),
    )
    return parallelize(
        adapted(
            lambda layers, part: DiT(spec.model, layers, part=part, recompute=spec.recompute),
            spec.adapters,
            groups.tp,
            sp=mesh.sp,
        ),
        spec.num_layers,
        partial(start_value, spec),
        lambda module: build_optimizer(module, spec.optim),
        plan,
        launch.device,
    )


class _Frozen:
    """What this process holds of the parameters that are not trained, as it was before the first step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = {name: _held(parameter).clone() for name, parameter in self._parameters()}

    def check(self) -> None:
        """Raise NumericsError where one has changed by a bit, or got a gradient."""
        for name, parameter in self._parameters():
            if parameter.grad is not None or not torch.equal(_held(parameter), self._before[name]):
                raise NumericsError(f"{name} is frozen, and was changed or got a gradient")

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, p) for name, p, _ in self._engine.local_parameters() if not p.requires_grad)


def _held(parameter: torch.Tensor) -> torch.Tensor:
    """The values of a parameter, or, under ZeRO-3, of this rank's partition of it."""
    held: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return held.detach()


class _GradientWatch:
    """Copies what the optimizer is given at each of its steps: the reduced and clipped gradient of its own tensors."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[int, torch.Tensor] = {}
        engine.base_optimizer.register_step_pre_hook(self._look)

    def _look(self, optimizer: torch.optim.Optimizer, arguments: Any, options: Any) -> None:
        # under ZeRO-3 the optimizer steps once for each group
        for group in optimizer.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    self._seen[id(flat)] = flat.grad.detach().clone()

    def pieces(self, step: int, norm: float, clip: float | None) -> Iterator[Piece]:
        """The unclipped gradients of a step, by fragment."""
        scale = max(1.0, (norm + 1e-6) / clip) if clip else 1.0
        for place in held_places(self._engine):
            yield self._piece(place, step, scale)
        self._seen.clear()

    def _piece(self, place: Place, step: int, scale: float) -> Piece:
        values = place.view(self._seen[id(place.flat)]).float() * scale
        return Piece("grad", step, place.name, place.shape, place.shard, place.start, values)
