"""What one rank does and tells in `test_predict.py`: training with passes without gradient in between, and without."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from megavideo.parallel.engines.average import averaged_weights, has_average
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import held_fragments
from megavideo.parallel.engines.predict import predict, predict_whole
from megavideo.parallel.processes.distributed import Launch
from megavideo.parity.packs import step_input
from megavideo.parity.spec import ParitySpec
from megavideo.testing.parity_training import ParityTraining, parity_training
from megavideo.testing.plain_model import plain_models
from megavideo.types import PackedBatch

STEPS = 3
# of another length than the packs of training
OTHER_TOKENS = 96


def run_layouts(launch: Launch, spec: ParitySpec, layouts: Sequence[str]) -> dict[str, Any]:
    """An account of each layout."""
    return {layout: _account(launch, spec, layout) for layout in layouts}


def _account(launch: Launch, spec: ParitySpec, layout: str) -> dict[str, Any]:
    with parity_training(launch, spec, layout) as training:
        plain = [_loss(training, step) for step in range(STEPS)]
    with parity_training(launch, spec, layout) as training:
        engine = training.engine
        packs = _packs(spec, engine.dtype)
        _looked_at(engine, packs)  # before the first update, when nothing has been traced
        mixed = [_loss(training, 0)]
        before, random = _digest(engine), torch.random.get_rng_state()
        found = _looked_at(engine, packs)
        kept = _digest(engine) == before and torch.equal(torch.random.get_rng_state(), random)
        mixed += [_loss(training, step) for step in range(1, STEPS)]
        own = predict(engine, packs[0])
        return {
            "plain": plain, "mixed": mixed, "kept": kept, "own": None if own is None else list(own.shape),
            "grads": _num_gradients(engine), "reference": _reference(engine, spec, packs, layout), **found,
        }  # fmt: skip


def _looked_at(engine: Engine, packs: Sequence[PackedBatch]) -> dict[str, Any]:
    assert has_average(engine)
    raw = [predict_whole(engine, pack).tolist() for pack in packs]
    with averaged_weights(engine):
        average = [predict_whole(engine, pack).tolist() for pack in packs]
    again = [predict_whole(engine, pack).tolist() for pack in packs]
    return {"raw": raw, "average": average, "same_again": raw == again}


def _loss(training: ParityTraining, step: int) -> float:
    report, _ = training.step(step)
    assert report.applied
    return report.loss


def _packs(spec: ParitySpec, dtype: torch.dtype) -> list[PackedBatch]:
    """A pack of training and a longer one with other clips; the same on every rank."""
    longer = dataclasses.replace(spec, tokens=OTHER_TOKENS, pack="1x3x4+3x4x5")
    batches = [step_input(one, 7, 0, one.packs_per_step).batches[0] for one in (spec, longer)]
    return [batch.to(torch.device("cpu"), dtype).pack for batch in batches]


def _digest(engine: Engine) -> str:
    """Of the optimizer's states and of the weights that the model computes with."""
    digest = hashlib.sha256()
    for fragment in held_fragments(engine):
        for name in sorted(fragment.states):
            digest.update(fragment.states[name].contiguous().numpy().tobytes())
    for _, parameter in engine.named_parameters():
        values = getattr(parameter, "ds_tensor", parameter).detach()
        digest.update(values.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _num_gradients(engine: Engine) -> int:
    return sum(p.grad is not None and bool(p.grad.any()) for _, p in engine.named_parameters())


def _reference(engine: Engine, spec: ParitySpec, packs: Sequence[PackedBatch], layout: str) -> dict[str, Any] | None:
    """One process without ZeRO: a plain model with the weights, and with the averages, of the end of the training."""
    if layout != "zero0":
        return None
    told: dict[str, Any] = {}
    for kind, model in plain_models(engine, spec.model):
        with torch.no_grad():
            told[kind] = [model(pack).tolist() for pack in packs]
    told["predicted"] = [predict_whole(engine, pack).tolist() for pack in packs]
    with averaged_weights(engine):
        told["predicted_by_average"] = [predict_whole(engine, pack).tolist() for pack in packs]
    return told
