"""A rank's part of a real model, forward and backward at full size on the meta device, and what was seen of it.

Shape legend: N video tokens of the pack, n this rank's own, M text tokens, K segments, P patch width, D width.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import megavideo
from megavideo.config.schema.train import TrainRun
from megavideo.data.plan.packing import PackLimits, pack_balanced
from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.dit import DiT, Hidden
from megavideo.model.layers import Layers
from megavideo.model.recompute import SavedTensors
from megavideo.parallel.engines.engine import EnginePlan
from megavideo.parallel.parallelize import build_stage, make_layers
from megavideo.testing.fake_ranks import META, fake_rank, held_parts, no_value, plan_of
from megavideo.testing.meta_norm import rms_norm_as_on_a_gpu
from megavideo.train.step import squared_error
from megavideo.types import Grid, PackedBatch

_PIXELS = 16  # of a token's side: the autoencoder's 8 times the patch's 2
_RATIOS = (1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16, 1.5, 2 / 3, 21 / 9)
_FRAMES = (1, 5, 9, 17, 33, 65)  # pixel frames; the autoencoder keeps one of four after the first
_TEXT_TOKENS = (40, 320)
_LARGEST_AREA = (32_768, 1_310_720)
_PACKS = 16  # among which clips are shared out
_HOST_READS = (
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "is_nonzero",
    "unique_consecutive",
    "_unique2",
    "masked_select",
)


@dataclass
class RankReport:
    """What one rank met. `problems` say what must not be; sizes are bytes but for `largest`, which is elements.

    `largest_where` names the operator whose result it was, its shape, and the line of the package that asked for it.
    """

    model: str
    stage: str
    rank: int
    place: str
    blocks: str
    segments: int
    parameter_bytes: int = 0
    saved_bytes: int = 0
    largest: int = 0
    largest_where: str = ""
    collectives: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_rank(config: TrainRun, rank: int, world_size: int) -> RankReport:
    """Build what `rank` holds under the layout of `config` and run it forward and backward on one pack."""
    begin = time.monotonic()
    rms_norm_as_on_a_gpu()
    with fake_rank(rank, world_size):
        plan = plan_of(config)
        layers = make_layers(plan, CPU_FLASH, META)
        pack = real_pack(config)
        parts = held_parts(plan, config.model.layers)
        place = " ".join(f"{axis}{number}" for axis, number in plan.mesh.place().items())
        report = RankReport(
            config.name, config.stage or "", rank, place, ", ".join(f"{part.start}-{part.stop - 1}" for part in parts),
            sum(1 for name in pack.sample_ids if name),
        )  # fmt: skip
        for part in parts:
            _run_part(config, plan, layers, part, pack, report)
    report.seconds = round(time.monotonic() - begin, 1)
    return report


def real_pack(config: TrainRun, seed: int = 0) -> PackedBatch:
    """A pack on the meta device: clips of a stage's areas and frames in many shapes, packed as for training."""
    data, generator = config.data, random.Random(seed)
    wanted, grids = _PACKS * data.tokens_per_pack, list[Grid]()
    while sum(grid.num_tokens for grid in grids) < wanted:
        grid = _clip(config, generator)
        grids += [grid] if grid.num_tokens <= data.tokens_per_pack else []
    tokens = np.array([grid.num_tokens for grid in grids])
    text = np.array([generator.randint(*_TEXT_TOKENS) for _ in grids])
    limits = PackLimits(data.tokens_per_pack, data.text_tokens_per_pack, data.max_segments or len(grids))
    packs = pack_balanced(tokens, text, limits, _PACKS).packs
    count = max(map(len, packs))
    chosen = packs[0]
    unused = count - len(chosen)

    def bounds(lengths: Any) -> tuple[int, ...]:
        ends = [int(end) for end in np.cumsum(lengths[chosen])]
        return (0, *ends, *[ends[-1]] * unused)

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    return PackedBatch(
        tokens=empty(data.tokens_per_pack, config.model.patch_dim),
        cu_seqlens=empty(count + 1, dtype=torch.int32),
        grid=empty(count, 3, dtype=torch.int64),
        text=empty(data.text_tokens_per_pack, config.model.text_dim),
        cu_seqlens_text=empty(count + 1, dtype=torch.int32),
        fps=empty(count, dtype=torch.float32),
        timestep=empty(count, dtype=torch.float32),
        condition_mask=empty(data.tokens_per_pack, dtype=torch.bool),
        sample_ids=(*(str(item) for item in chosen), *[""] * unused),
        visits=(0,) * count,
        bounds=bounds(tokens),
        text_bounds=bounds(text),
    )


def _clip(config: TrainRun, generator: random.Random) -> Grid:
    """The token grid of a clip that the stage takes."""
    low, high = config.data.area or _LARGEST_AREA
    first, last = config.data.frames or (1, _FRAMES[-1])
    frames = generator.choice([number for number in _FRAMES if first <= number <= last])
    area, ratio = generator.uniform(low, high), generator.choice(_RATIOS)
    height, width = ((area / ratio) ** 0.5, (area * ratio) ** 0.5)
    return Grid(1 + (frames - 1) // 4, max(1, int(height / _PIXELS)), max(1, int(width / _PIXELS)))


def _run_part(
    config: TrainRun, plan: EnginePlan, layers: Layers, part: range, pack: PackedBatch, report: RankReport
) -> None:
    """One pipeline stage of a rank."""

    def build(layers: Layers, part: range) -> DiT:
        return DiT(config.model, layers, part=part, recompute=config.train.recompute)

    model = build_stage(build, layers, part, start=no_value, plan=plan, device=META)
    given: PackedBatch | Hidden = pack if model.embed is not None else _hidden(config, plan, layers, pack)
    inputs = _floating(given) if isinstance(given, Hidden) else []
    parameters = dict(model.named_parameters())
    watch = Watch()
    with watch, SavedTensors([*parameters.values(), *inputs]) as saved:
        out = model.stage(given)
        report.saved_bytes += saved.num_bytes
        outputs = _finish(config, plan, layers, pack, out, report)
        torch.autograd.backward(outputs, [torch.empty_like(tensor) for tensor in outputs])
    for name, tensor in [*parameters.items(), *((f"input {i}", tensor) for i, tensor in enumerate(inputs))]:
        grad = tensor.grad
        if grad is None or (grad.shape, grad.dtype, grad.is_meta) != (tensor.shape, tensor.dtype, True):
            told = "none" if grad is None else f"{tuple(grad.shape)} {grad.dtype}"
            report.problems.append(f"gradient of {name} {tuple(tensor.shape)} {tensor.dtype}: {told}")
    report.parameter_bytes += sum(parameter.nbytes for parameter in parameters.values())
    report.problems += watch.problems
    report.collectives = dict(Counter(report.collectives) + watch.collectives)
    if watch.largest > report.largest:
        report.largest, report.largest_where = watch.largest, watch.largest_where


def _hidden(config: TrainRun, plan: EnginePlan, layers: Layers, pack: PackedBatch) -> Hidden:
    """What arrives at a later stage: the embedder's result, as tensors that want a gradient."""

    def build(layers: Layers, part: range) -> DiT:
        return DiT(config.model, layers, part=part)

    def arrived(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().requires_grad_()

    embedder = build_stage(build, layers, range(0), start=no_value, plan=plan, device=META)
    hidden = embedder.stage(pack)
    assert isinstance(hidden, Hidden)
    modulation = None if hidden.modulation is None else arrived(hidden.modulation)
    return Hidden(arrived(hidden.x), arrived(hidden.time), modulation, arrived(hidden.text), hidden.facts)


def _floating(hidden: Hidden) -> list[torch.Tensor]:
    return [value for value in (hidden.x, hidden.time, hidden.modulation, hidden.text) if value is not None]


def _finish(
    config: TrainRun, plan: EnginePlan, layers: Layers, pack: PackedBatch, out: Any, report: RankReport
) -> Sequence[torch.Tensor]:
    """What the backward pass begins with, once shapes are as the next stage, or the loss, expects them."""
    own, model = plan.mesh.own_tokens(len(pack.tokens)), config.model
    count, dtype = own.stop - own.start, plan.dtype
    rows, text = 2 * len(pack.grid), len(layers.own_text(pack.text))
    if isinstance(out, Hidden):
        wanted = [(count, model.width), (rows, model.width), (rows, 6, model.width), (text, model.width)]
        outputs = _floating(out)
    else:
        wanted, outputs = [(count, model.patch_dim)], [out]
    found = [(tuple(tensor.shape), tensor.dtype) for tensor in outputs]
    if found != [(shape, dtype) for shape in wanted]:
        report.problems.append(f"output {found}, expected {wanted} in {dtype}")
    if isinstance(out, Hidden):
        return outputs
    target, weight = pack.tokens[own].float(), torch.empty(count, device=META)
    return [squared_error(out, target, weight).sum()]


class Watch(TorchDispatchMode):
    """Within it, every operator is looked at: reads by the host, collectives, and the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.collectives: Counter[str] = Counter()
        self.largest, self.largest_where = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and look at its result."""
        name = str(func.overloadpacket)
        namespace, _, short = name.partition(".")
        if namespace == "c10d":
            self.collectives[short.rstrip("_")] += 1
        out = func(*args, **(kwargs or {}))
        results = [
            value for value in (out if isinstance(out, tuple | list) else (out,)) if isinstance(value, torch.Tensor)
        ]
        if short in _HOST_READS:
            self.problems.append(f"{name} reads the device, asked by {_asked_by()}")
        for tensor in results:
            if not tensor.is_meta and tensor.numel() > 1024:
                self.problems.append(f"{name} gave {tuple(tensor.shape)} on {tensor.device}, asked by {_asked_by()}")
            if tensor.numel() > self.largest:
                self.largest = tensor.numel()
                self.largest_where = f"{name} {tuple(tensor.shape)} {tensor.dtype}, {_asked_by()}"
        return out


def _asked_by() -> str:
    """The nearest line of the package outside this module."""
    root = Path(megavideo.__file__).parent
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if root in path.parents and path != Path(__file__):
            return f"{path.relative_to(root)}:{frame.lineno}"
    return "autograd"
