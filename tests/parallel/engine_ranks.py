"""Steps of small engines on real ranks, of which it is counted when the device is waited for, or what they came to."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch

from megavideo.optim.adamw import AdamWWithEma
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.engines import engine as engines
from megavideo.parallel.engines.deepspeed import load_deepspeed
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import held_fragments
from megavideo.parallel.engines.plain_engine import PlainEngine
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import destroy_groups
from megavideo.parity.packs import step_input
from megavideo.parity.process import build_parity_engine
from megavideo.parity.spec import ParitySpec
from megavideo.train.step import Trainer

Step = Callable[[int], object]

STEPS = 4  # DeepSpeed's timers wait from the third on


@contextmanager
def device_waits() -> Iterator[list[str]]:
    """Every wait for the device by DeepSpeed's accelerator; on a GPU each is one for all of its streams."""
    seen: list[str] = []
    accelerator = type(load_deepspeed().accelerator.get_accelerator())
    with patch.object(accelerator, "synchronize", lambda *given: seen.append("synchronize")):
        yield seen


def waits_of_steps(launch: Launch, spec: ParitySpec, layouts: Sequence[str]) -> dict[str, int]:
    """By layout, in the last of four steps of the production engine and trainer."""
    found = {}
    for layout in layouts:
        with _stepper(launch, spec, layout) as (step, _):
            found[layout] = _last(step)
    return found


def plain_step(launch: Launch) -> list[int | str]:
    """Of the engine of modules of one piece: waits of a step, the number format of its outputs and of its weights."""
    engine = PlainEngine(
        torch.nn.Linear(4, 4), lambda module: AdamWWithEma(module.parameters(), ema_decay=None), 1.0, autocast=True
    )
    waits = _last(lambda number: engine.update(engine(torch.ones(2, 4)).float().square().mean(), 1e-3))
    return [waits, str(engine(torch.ones(2, 4)).dtype), str(next(engine.module.parameters()).dtype)]


def results(launch: Launch, spec: ParitySpec, layouts: Sequence[str], buckets: Sequence[int]) -> dict[str, list[str]]:
    """By layout, for buckets of so many elements: a hash of this rank's weights and averages after the steps."""
    found: dict[str, list[str]] = {layout: [] for layout in layouts}
    for layout in layouts:
        for bucket in buckets:
            with (
                patch.object(engines, "REDUCE_BUCKET_ELEMENTS", bucket),
                _stepper(launch, spec, layout) as (step, engine),
            ):
                for number in range(STEPS):
                    step(number)
                found[layout].append(_hash(engine))
    return found


def _hash(engine: Engine) -> str:
    digest = hashlib.sha256()
    for fragment in held_fragments(engine):
        for kind in ("weight", "ema"):
            digest.update(fragment.states[kind].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _last(step: Step) -> int:
    for number in range(STEPS - 1):
        step(number)
    with device_waits() as seen:
        step(STEPS - 1)
    return len(seen)


@contextmanager
def _stepper(launch: Launch, spec: ParitySpec, layout: str) -> Iterator[tuple[Step, Engine]]:
    engine = build_parity_engine(spec, layout, launch)
    engine.create_state()
    mesh = engine.plan.mesh
    rate = partial(learning_rate, spec.optim, num_steps=STEPS)
    trainer = Trainer(engine, mesh, launch.device, lambda step: rate(step=step))
    yield lambda number: trainer.step(step_input(spec, number, mesh.dp_rank, mesh.dp)), engine
    engine.close()
    destroy_groups()
    gc.collect()  # a DeepSpeed engine waits for the device once more when it is collected
