"""Reading a checkpoint under any layout: each caller takes the element ranges it needs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from megavideo.checkpoint.manifest import FragmentEntry, Manifest, list_checkpoints, read_manifest
from megavideo.errors import CheckpointError
from megavideo.parallel.fragments import WEIGHT, Fragment

EMA = "ema"


class CheckpointReader:
    """Ranges of states of a verified checkpoint. Raises CheckpointError naming the file that is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._places: dict[tuple[str, str], list[tuple[str, FragmentEntry]]] = defaultdict(list)
        for file in self.manifest.files:
            self._verify(file.file, file.xxh64)
            for entry in file.fragments:
                self._places[entry.state, entry.name].append((file.file, entry))

    def read(self, state: str, name: str, start: int, numel: int) -> torch.Tensor:
        """Elements [start, start + numel) of one state of a flattened parameter, float32."""
        out = torch.empty(numel)
        covered = 0
        for file, entry in self._places.get((state, name), ()):
            begin, end = max(start, entry.start), min(start + numel, entry.start + entry.numel)
            if begin >= end:
                continue
            with self._opened(file) as handle:
                part = handle.get_slice(entry.key)[begin - entry.start : end - entry.start]
            out[begin - start : end - start] = part
            covered += end - begin
        if covered != numel:
            raise CheckpointError(
                f"{self.folder}: state {state!r} of parameter {name!r} is not there in whole ({covered} of {numel} "
                f"elements; states saved: {', '.join(sorted(self.manifest.states))}). Remedy: use another checkpoint, "
                "or weights=raw where the average was not kept"
            )
        return out

    def whole(self, state: str) -> dict[str, torch.Tensor]:
        """One state of every parameter in its full shape; `ema` or `weight`."""
        shapes = self.manifest.shapes
        return {
            name: self.read(state, name, 0, torch.Size(shape).numel()).view(shape) for name, shape in shapes.items()
        }

    def fill(self, fragment: Fragment) -> None:
        """Put the saved values into a rank's live states."""
        for state, values in fragment.states.items():
            values.copy_(self.read(state, fragment.name, fragment.start, fragment.numel))
        fragment.steps.fill_(self.manifest.optimizer_steps)

    def fill_module(self, model: torch.nn.Module) -> None:
        """Put the saved weights into a model whose parameters are whole on this rank, in its own precision."""
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if shapes != self.manifest.shapes:
            name = next(n for n in {**shapes, **self.manifest.shapes} if shapes.get(n) != self.manifest.shapes.get(n))
            raise CheckpointError(
                f"{self.folder}: made for another model: parameter {name!r} is {self.manifest.shapes.get(name)} in "
                f"the checkpoint, {shapes.get(name)} in this run. Remedy: use the run's own model settings"
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.read(WEIGHT, name, 0, parameter.numel()).view(parameter.shape))

    def _verify(self, file: str, expected: str) -> None:
        path = self.folder / file
        try:
            actual = xxhash.xxh64(path.read_bytes()).hexdigest()
        except OSError as error:
            reason = f"cannot be read ({error.strerror}). Remedy: use another checkpoint"
            raise CheckpointError(f"{path}: {reason}") from error
        if actual != expected:
            raise CheckpointError(
                f"{path}: damaged: its xxh64 is {actual}, the manifest says {expected}. Remedy: move this folder away; "
                "the run then goes on from the checkpoint before it"
            )

    def _opened(self, file: str) -> safe_open:
        try:
            return safe_open(self.folder / file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / file}: cannot be read ({error})") from error


def find_checkpoint(place: Path) -> Path:
    """A checkpoint folder from a run folder (its newest), its `checkpoints` folder, or itself."""
    if not place.exists():
        raise CheckpointError(f"{place}: no such folder. Remedy: give a run folder or a checkpoint in it")
    for folder in (place / "checkpoints", place):
        found = list_checkpoints(folder)
        if found:
            return found[-1]
    read_manifest(place)
    return place
