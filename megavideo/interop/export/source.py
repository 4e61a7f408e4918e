"""The weights of a checkpoint as whole parameters under the model's own names, whatever layout wrote them."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from megavideo.border.names import shown
from megavideo.checkpoint.read_once import SinglePassReader
from megavideo.config.dump import from_yaml
from megavideo.config.schema.train import TrainRun
from megavideo.errors import CheckpointError
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.optim.adamw import EMA
from megavideo.parallel.engines.fragments import WEIGHT

# modules that others wrap around a model, of which its names then tell
WRAPPERS = frozenset(("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))


class ExportSource:
    """One state of a checkpoint's parameters, read one by one, or piece by piece; whole only if `finish` says so.

    `shapes` are those of the model of the run's settings, in its order. Raises CheckpointError where the checkpoint is
    damaged or has other parameters than that model.
    """

    def __init__(self, folder: Path, weights: str) -> None:
        self.folder = folder
        self._reader = SinglePassReader(folder)
        self.manifest = self._reader.manifest
        self.config = from_yaml(TrainRun, self.manifest.config, source=str(folder / "manifest.json"))
        self._state = EMA if weights == "ema" else WEIGHT
        self._saved_as = _saved_names(folder, tuple(self.manifest.shapes))
        with torch.device("meta"):
            model = DiT(self.config.model, LocalLayers())
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._check_names()

    def value(self, name: str) -> torch.Tensor:
        """A whole parameter, float32. Raises DamagedError where a value is not finite."""
        value = self._reader.value(self._state, self._saved_as[name], self.shapes[name])
        self._reader.check_finite()
        return value

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        """Put elements of the flattened parameter, from `start` on, into `out`, float32 [numel]; raises as `value`."""
        self._reader.read_into(self._state, self._saved_as[name], start, out)
        if start + out.numel() == math.prod(self.shapes[name]):
            self._reader.check_finite()

    def finish(self) -> None:
        """Read what is left of the files that were read from. Raises DamagedError where one is not as it was saved."""
        self._reader.finish()

    def _check_names(self) -> None:
        for what, names in (
            ("lacks", self.shapes.keys() - self._saved_as.keys()),
            ("has", self._saved_as.keys() - self.shapes.keys()),
        ):
            if names:
                others = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise CheckpointError(
                    f"{self.folder}: is not of the model of its settings: it {what} {shown(min(names))}{others}. "
                    "Remedy: export with the version of megavideo that wrote it"
                )
        if self._state not in self.manifest.states:
            raise CheckpointError(
                f"{self.folder}: holds no averaged weights (states: {', '.join(sorted(self.manifest.states))}). "
                "Remedy: take weights=raw"
            )


def _saved_names(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The names in a checkpoint by those of the plain model."""
    saved: dict[str, str] = {}
    for name in names:
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain in saved:
            raise CheckpointError(
                f"{folder}: {shown(name)} and {shown(saved[plain])} are both the model's {shown(plain)}. "
                "Remedy: use another checkpoint"
            )
        saved[plain] = name
    return saved
