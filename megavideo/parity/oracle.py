"""One process in plain torch: no engine, no groups, no sharding. What every layout must reproduce.

It shares with the layouts what does not depend on one, and would not see a fault there: the model with its local
layers (held to diffusers in tests/model), AdamW with its average and the learning rate (to torch in tests/optim), the
packs with their noise and count of tokens (tests/data, tests/diffusion, tests/train), and the squared error. Its own
are the sum over packs, the division by tokens, the clipping, the fp32 weights behind bf16, and the loss's further
terms (`plain_terms`).
"""

from __future__ import annotations

import torch
from torch import nn

from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.optim.build import build_optimizer
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.adapters.adapt import adapted
from megavideo.parallel.layers.sharding import WHOLE
from megavideo.parity.packs import fill_whole, step_input, step_windows
from megavideo.parity.plain_terms import plain_terms
from megavideo.parity.record import Piece, Record
from megavideo.parity.spec import ParitySpec
from megavideo.train.step import squared_error


def run_oracle(spec: ParitySpec) -> Record:
    """Train the spec's steps on all its packs.

    In bf16 the model computes in bf16 from weights that are kept, with their gradients, in fp32.
    """
    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    master = whole_model(spec)
    model = master if dtype == torch.float32 else whole_model(spec).to(dtype)
    optimizer = build_optimizer(master, spec.optim)
    losses, terms, norms, pieces = [], [], [], []
    for step in range(spec.steps):
        _copy(master, model)
        loss, *others = _accumulate(spec, step, master, model)
        losses.append(loss)
        terms += others
        gradients = [p.grad for p in master.parameters() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        pieces += [_piece("grad", step, name, p.grad) for name, p in master.named_parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(master.parameters(), spec.optim.clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec.optim, step, spec.steps)
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in ((name, p) for name, p in master.named_parameters() if p.requires_grad):
        pieces.append(_piece("weight", spec.steps, name, parameter))
        pieces.append(_piece("ema", spec.steps, name, optimizer.state[parameter]["ema"]))
    return Record(tuple(losses), tuple(norms), tuple(pieces), tuple(terms))


def whole_model(spec: ParitySpec, recompute: RecomputeConfig | None = None) -> DiT:
    """The model of one process, with its adapters where the spec has any, at the start weights."""
    build = adapted(lambda layers, part: DiT(spec.model, layers, part=part, recompute=recompute), spec.adapters)
    model = build(LocalLayers(), range(spec.num_layers))
    fill_whole(spec, model)
    return model


def _accumulate(spec: ParitySpec, step: int, master: nn.Module, model: nn.Module) -> list[float]:
    """Gradients of one step into the master's; the loss and its further terms."""
    given, windows = step_input(spec, step, 0, 1), step_windows(spec, step)
    weights = {name: getattr(spec.diffusion.terms, name) for name in spec.loss_terms}
    totals = [0.0] * (1 + len(weights))
    dtype = next(model.parameters()).dtype
    for exact in given.batches:
        batch = exact.to(torch.device("cpu"), dtype)
        prediction = model(batch.pack)
        parts = {"error": squared_error(prediction, batch.target, batch.weight).sum()}
        if weights:
            parts |= plain_terms(spec, exact, prediction, windows)
        totals = [total + float(part.detach()) for total, part in zip(totals, parts.values(), strict=True)]
        loss = sum((weights.get(name, 1.0) * part for name, part in parts.items()), torch.zeros(()))
        (loss / given.loss_tokens).backward()
        if model is not master:
            for kept, used in zip(master.parameters(), model.parameters(), strict=True):
                if used.grad is not None:
                    kept.grad = used.grad.float() if kept.grad is None else kept.grad + used.grad.float()
                    used.grad = None
    return [total / given.loss_tokens for total in totals]


@torch.no_grad()
def _copy(master: nn.Module, model: nn.Module) -> None:
    if model is not master:
        for kept, used in zip(master.parameters(), model.parameters(), strict=True):
            used.copy_(kept)


def _piece(kind: str, step: int, name: str, values: torch.Tensor) -> Piece:
    return Piece(kind, step, name, tuple(values.shape), WHOLE, 0, values.detach().flatten().clone())
