"""`megavideo lora`: adapters of a run as a file of other tools, merged into their base, or taken from such a file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megavideo.border.files import GB
from megavideo.checkpoint.base import Base, MergedWeights, base_of
from megavideo.checkpoint.manifest import MANIFEST, BaseReference, Header, step_name
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.write import write_alone
from megavideo.config.dump import from_yaml, to_yaml
from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.train import TrainRun
from megavideo.errors import CheckpointError
from megavideo.interop.adapter_file import Adapter, read_adapter, write_adapter
from megavideo.observe.run_folder import RunFolder
from megavideo.optim.adamw import EMA
from megavideo.parallel.adapters.low_rank import BRANCH
from megavideo.parallel.engines.fragments import WEIGHT, Fragment
from megavideo.parallel.layers.sharding import WHOLE

_SHARE_BYTES = 2 * GB  # of a file, and in memory at once
_OF_SAMPLING = ("sampling.json", "encoders")  # beside the checkpoints, so that a run can be sampled


@dataclass(frozen=True)
class AdapterReport:
    """What was written: the file or checkpoint, the adapters' rank and alpha, and beside how many layers they are."""

    place: str
    base: str
    rank: int
    alpha: float
    layers: int


def export_adapter(place: Path, out: Path, weights: str) -> AdapterReport:
    """Write the adapters of a run or checkpoint, their averages (`ema`) or `raw`, in PEFT's names into a folder.

    Raises CheckpointError where there are none, or where Wan's network cannot express the model.
    """
    reader, config, base = _opened(place)
    adapter = _adapter(reader, config.lora, EMA if weights == "ema" else WEIGHT)
    reader.check_finite()
    try:
        path = write_adapter(out, adapter, config.model)
    except OSError as error:
        raise CheckpointError(
            f"{out}: cannot be written ({error}). Remedy: make room, or name another place"
        ) from error
    return _report(path, base, adapter)


def merge_adapter(place: Path, base: str | None, out: Path) -> AdapterReport:
    """Write a run folder with one checkpoint of whole weights: those of the base with the adapters added, in float32.

    Weights have the adapters' weights, averages their averages. `base` says where the base lies now, if it was moved.
    Raises CheckpointError where either cannot be read, or `out` has such a checkpoint.
    """
    reader, config, _ = _opened(place)
    found = base_of(reader, base)
    merged = MergedWeights(reader, found, config.lora.scale)
    states = sorted(reader.manifest.states & {WEIGHT, EMA})

    def fragments() -> Iterator[Fragment]:
        for name, shape in merged.shapes.items():
            values = {state: merged.value(state, name, shape).flatten() for state in states}
            yield Fragment(name, shape, WHOLE, 0, values, torch.tensor(0.0))

    def check() -> None:
        reader.check_finite()
        found.reader.check_finite()

    text = to_yaml(replace(config, lora=LoraConfig()))
    header = Header(reader.manifest.step, "zero0", text, reader.manifest.progress)
    folder = RunFolder(out)
    manifest = write_alone(folder.checkpoints, header, reader.manifest.optimizer_steps, _shares(fragments()), check)
    _bring_encoders(reader.folder, out)
    written = folder.checkpoints / step_name(manifest.step)
    return _report(written, found.reference, _adapter(reader, config.lora, states[-1]))


def load_adapter(file: Path, base: str, out: Path) -> AdapterReport:
    """Write a run folder with one checkpoint of adapters from a file of other tools, beside the base they are for.

    It can be sampled, merged, exported, and trained on by `init_from`. Raises CheckpointError where the file does not
    fit the base's model to the last tensor, or `out` has such a checkpoint.
    """
    found = Base(base)
    manifest = found.reader.manifest
    config = from_yaml(TrainRun, manifest.config, source=str(found.reader.folder / MANIFEST))
    adapter = read_adapter(file, config.model)
    lora = LoraConfig(
        rank=adapter.rank, alpha=adapter.alpha, targets=tuple(adapter.matrices), base=found.reference.checkpoint
    )
    fragments = [
        Fragment(f"{layer}.{BRANCH}.{matrix}", tuple(values.shape), WHOLE, 0,
                 {WEIGHT: values.flatten(), EMA: values.flatten()}, torch.tensor(0.0))
        for layer, pair in adapter.matrices.items() for matrix, values in zip("AB", pair, strict=True)
    ]  # fmt: skip
    if not all(bool(torch.isfinite(fragment.states[WEIGHT]).all()) for fragment in fragments):
        raise CheckpointError(f"{file}: holds values that are not finite. Remedy: give other adapters")
    header = Header(0, "zero0", to_yaml(replace(config, lora=lora)), base=found.reference)
    folder = RunFolder(out)
    write_alone(folder.checkpoints, header, 0, [fragments])
    _bring_encoders(found.reader.folder, out)
    return _report(folder.checkpoints / step_name(0), found.reference, adapter)


def _opened(place: Path) -> tuple[CheckpointReader, TrainRun, BaseReference]:
    reader = CheckpointReader(find_checkpoint(place))
    reference = reader.manifest.base
    config = from_yaml(TrainRun, reader.manifest.config, source=str(reader.folder / MANIFEST))
    if reference is None or config.lora.rank is None:
        raise CheckpointError(f"{reader.folder}: holds no adapters. Remedy: give a run that was trained with lora.rank")
    return reader, config, reference


def _adapter(reader: CheckpointReader, lora: LoraConfig, state: str) -> Adapter:
    shapes, ending = reader.manifest.shapes, f".{BRANCH}.A"
    layers = [name.removesuffix(ending) for name in shapes if name.endswith(ending)]

    def matrix(name: str) -> torch.Tensor:
        return reader.value(state, name, shapes[name])

    matrices = {layer: (matrix(f"{layer}{ending}"), matrix(f"{layer}.{BRANCH}.B")) for layer in layers}
    assert lora.rank is not None, "checkpoints of adapters are opened by their settings"
    return Adapter(lora.rank, lora.scale * lora.rank, matrices)


def _shares(fragments: Iterator[Fragment]) -> Iterator[list[Fragment]]:
    """Runs of fragments of some gigabytes each."""
    share: list[Fragment] = []
    for fragment in fragments:
        share.append(fragment)
        if sum(4 * math.prod(held.shape) * len(held.states) for held in share) >= _SHARE_BYTES:
            yield share
            share = []
    if share:
        yield share


def _bring_encoders(checkpoint: Path, out: Path) -> None:
    """What sampling needs beside a checkpoint, from the run folder that it lies in, where that has it."""
    try:
        for name in _OF_SAMPLING:
            source, target = checkpoint.parent.parent / name, out / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, target)
    except OSError as error:
        raise CheckpointError(
            f"{out}: has its checkpoint, and not what sampling needs beside it ({error}). Remedy: make room, and copy "
            f"{', '.join(_OF_SAMPLING)} there from {checkpoint.parent.parent}"
        ) from error


def _report(place: Path, base: BaseReference, adapter: Adapter) -> AdapterReport:
    return AdapterReport(str(place), base.checkpoint, adapter.rank, adapter.alpha, len(adapter.matrices))
