"""The weights beside which adapters stand, in a checkpoint of their own, and whole weights of the two together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from megavideo.checkpoint.finite import NonFinite
from megavideo.checkpoint.manifest import MANIFEST, BaseReference, file_digest
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.errors import CheckpointError
from megavideo.optim.adamw import EMA
from megavideo.parallel.adapters.low_rank import BRANCH, product
from megavideo.parallel.engines.fragments import WEIGHT


class Base:
    """Whole weights of a base: its averages, where it has any, else its weights.

    `place` is a run folder or checkpoint. `reference` names the checkpoint itself and the digest of its manifest, which
    holds those of all its files. Raises CheckpointError where it cannot be read, or holds adapters itself.
    """

    def __init__(self, place: Path | str) -> None:
        if "://" in str(place):
            raise CheckpointError(f"{place}: a base is read from a folder. Remedy: bring it here, and give that folder")
        self.reader = CheckpointReader(find_checkpoint(Path(place)).resolve())
        folder, manifest = self.reader.folder, self.reader.manifest
        if manifest.base is not None:
            raise CheckpointError(
                f"{folder}: holds adapters alone, and is no base. Remedy: merge them first, as with megavideo lora "
                f"merge {folder} out=merged, and give that folder"
            )
        self.reference = BaseReference(str(folder), file_digest(folder / MANIFEST))
        self._state = EMA if EMA in manifest.states else WEIGHT

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Whole shapes of its parameters."""
        return self.reader.manifest.shapes

    def check_model(self, names: Collection[str]) -> None:
        """Raise CheckpointError where it has parameters besides those of a model, as one with fewer blocks."""
        further = self.shapes.keys() - set(names)
        if further:
            raise CheckpointError(
                f"{self.reader.folder}: made for another model: this one has no parameter {min(further)!r}. Remedy: "
                "use the model settings of the base"
            )

    def value(self, name: str, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """One parameter, float32. Raises CheckpointError where it is not there, or of another shape."""
        return self.reader.value(self._state, name, shape)


def check_base(base: Base | None, reference: BaseReference | None, source: str) -> None:
    """Raise CheckpointError where `base` is not the one beside which the adapters of `source` were trained."""
    if base is not None and reference is not None and base.reference.xxh64 != reference.xxh64:
        raise CheckpointError(
            f"{source}: its adapters were trained beside {reference.checkpoint} (manifest {reference.xxh64}), and "
            f"{base.reference.checkpoint} is another (manifest {base.reference.xxh64}). Remedy: write "
            f"lora.base={reference.checkpoint}, or where it lies now"
        )


def base_of(reader: CheckpointReader, place: str | None = None) -> Base:
    """The base of a checkpoint of adapters: the one that it names, or, where that was moved, the same at `place`."""
    reference = reader.manifest.base
    if reference is None:
        raise CheckpointError(f"{reader.folder}: holds no adapters. Remedy: give a run that was trained with lora.rank")
    if place is None and not Path(reference.checkpoint).exists():
        raise CheckpointError(
            f"{reader.folder}: its base {reference.checkpoint} is not there. Remedy: bring it back, or write all "
            f"weights anew: megavideo lora merge {reader.folder} base=WHERE_IT_LIES out=merged"
        )
    base = Base(reference.checkpoint if place is None else place)
    check_base(base, reference, str(reader.folder))
    return base


class MergedWeights:
    """Whole weights of a base with the adapters of a checkpoint added, one parameter at a time.

    `scale` is what an adapter is multiplied by (`LoraConfig.scale`).
    """

    def __init__(self, adapters: CheckpointReader, base: Base, scale: float) -> None:
        self._adapters = adapters
        self._base = base
        self._scale = scale
        self.shapes = base.shapes

    @property
    def non_finite(self) -> tuple[NonFinite, ...]:
        """Tensors, of either, of which values that are not finite were read so far."""
        return (*self._adapters.non_finite, *self._base.reader.non_finite)

    def value(self, state: str, name: str, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """A parameter, float32, with the adapters' own `weight` or `ema`."""
        whole = self._base.value(name, shape)
        layer, _, leaf = name.rpartition(".")
        shapes = self._adapters.manifest.shapes
        down, up = (f"{layer}.{BRANCH}.{matrix}" for matrix in "AB")
        if leaf != "weight" or down not in shapes:
            return whole
        pair = (self._adapters.value(state, matrix, shapes[matrix]) for matrix in (down, up))
        return whole + self._scale * product(*pair)


def open_weights(reader: CheckpointReader, scale: float) -> CheckpointReader | MergedWeights:
    """What tells the whole weights of a checkpoint: it alone, or, where it holds adapters, together with its base."""
    return reader if reader.manifest.base is None else MergedWeights(reader, base_of(reader), scale)
