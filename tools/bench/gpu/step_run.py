"""A training step as something to time: a model of random weights, eager or with compiled blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from rows import Value, value_of
from session import Session, spread_values
from shapes import Content
from timing import Lap, Run, Timing
from torch import nn

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.dit import DiT
from megavideo.model.layers import Layers
from megavideo.planning.flops import BlockShape, train_flops


@dataclass(frozen=True)
class StepCase:
    """A model on packs of one content."""

    model_name: str
    model: ModelConfig
    content: Content

    @property
    def name(self) -> str:
        """As rows call it."""
        return f"{self.model_name}, {self.content.name}"

    @property
    def flops(self) -> int:
        """Of forward and backward, by the product's formula."""
        return train_flops(BlockShape(self.model.layers, self.model.width, self.model.ffn), self.content.segments)


def random_dit(
    config: ModelConfig,
    layers: int,
    kind: Layers,
    device: torch.device,
    recompute: RecomputeConfig | None = None,
) -> DiT:
    """The model with so many layers and random weights, in bf16 on `device`."""
    with device:
        model = DiT(replace(config, layers=layers), kind, recompute=recompute)
    model.to(device, torch.bfloat16)
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give every parameter numbers of a size that keeps activations finite; norms keep theirs."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.02)
        elif "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02)


def compiled_switch(blocks: Iterable[nn.Module], backend: str) -> Callable[[bool], None]:
    """What turns the blocks of a model to compiled ones, each compiled by itself at its first call, and back."""
    both = [(block, torch.compile(block._call_impl, backend=backend, dynamic=False)) for block in blocks]

    def switch(compiled: bool) -> None:
        for block, call in both:
            block._compiled_call_impl = call if compiled else None  # as nn.Module.compile does

    return switch


def step_runs(
    names: Mapping[str, bool],
    call: Callable[[], torch.Tensor],
    model: nn.Module,
    blocks: Iterable[nn.Module],
    tokens: int | None,
    backend: str,
) -> dict[str, Run]:
    """Steps of one set of weights: forward (`call`), backward, and AdamW on bf16; by name, whether compiled.

    The loss is over the first `tokens` of the prediction; None takes all.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    switch = compiled_switch(blocks, backend)

    def step(compiled: bool, lap: Lap) -> None:
        switch(compiled)
        loss = call()[:tokens].float().square().mean()
        lap("forward")
        loss.backward()
        lap("backward")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap("update")

    return {name: partial(step, compiled) for name, compiled in names.items()}


def step_values(session: Session, case: StepCase, timing: Timing) -> dict[str, Value | None]:
    """What a timed step comes to. MFU needs the device's peak, which part facts has where it is known."""
    peak = value_of(session.earlier, "peak_tflops", part="facts")
    rate = case.flops / timing.median / 1e12
    laps = {f"{name}_ms": seconds * 1e3 for name, seconds in timing.laps.items()}
    return {
        "tokens_per_s": case.content.tokens / timing.median,
        "tflops": rate,
        "mfu_percent": None if peak is None else 100 * rate / peak,
        "peak_gib": None if timing.peak_bytes is None else timing.peak_bytes / 2**30,
        **spread_values("step", timing),
        **laps,
        "first_s": timing.first_seconds,
    }
