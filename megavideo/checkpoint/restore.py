"""The newest checkpoint that is whole into an engine, by all ranks together; or weights alone, for a new run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from megavideo.checkpoint.agreement import from_rank_0, in_agreement
from megavideo.checkpoint.candidates import Candidate, find_candidates
from megavideo.checkpoint.copying import named_by_rank
from megavideo.checkpoint.fetch import Fetch
from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import Manifest
from megavideo.checkpoint.place import Place, Storage
from megavideo.checkpoint.read import CheckpointReader
from megavideo.checkpoint.store_place import StorePlace
from megavideo.checkpoint.weight_reader import WeightReader
from megavideo.errors import CheckpointError
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import held_fragments

_log = logging.getLogger(__name__)


def restore(
    checkpoints: Path,
    engine: Engine,
    storage: Storage | None = None,
    *,
    at_most: int | None = None,
    keep_fetched: bool = True,
) -> Manifest | None:
    """Fill the engine from the newest checkpoint that is whole; its manifest, None where there is none at all.

    A collective call. Each rank verifies the files that it reads from, and that their values are finite, and all agree
    on whether all could: if not, the damaged checkpoint is set aside under the name `damaged-...`, with a warning that
    names file or tensors and reason, and the one before it is tried. One that is not in the folder, or damaged there,
    is fetched from `storage` where that has it; without `keep_fetched` it is removed again once it was read. With
    `at_most`, those of later steps are removed: what they led to is undone.

    Raises CheckpointError on every rank where none is left that is whole, and where checkpoint and model do not fit
    each other; StoreUnreachable where the store stays away.
    """
    found = from_rank_0(lambda: find_candidates(checkpoints, storage))
    later = [candidate for candidate in found if at_most is not None and candidate.step > at_most]
    candidates = found[len(later) :]
    for candidate in candidates:
        manifest = _try(candidate, checkpoints, engine, storage)
        if manifest is not None:
            name = candidate.name
            from_rank_0(lambda: _remove(later, checkpoints, storage))
            if storage is not None and not keep_fetched and not candidate.in_folder:
                shutil.rmtree(checkpoints / name, ignore_errors=True)  # after the agreement no rank reads any more
            if dist.get_rank() == 0:
                _log.info("going on from %s", checkpoints / name)
            return manifest
    if candidates:
        raise CheckpointError(
            f"{checkpoints}: no checkpoint is left that is whole; the damaged ones lie there as damaged-... Remedy: "
            "bring a copy of one back under its own name, or start another run with name="
        )
    return None


def restore_weights(open_weights: Callable[[], WeightReader], engine: Engine) -> WeightReader:
    """Fill weights and averages from what `open_weights` gives on each rank, for a run that begins; that of this rank.

    Moments and counts are zero. Where no average is held it begins at the weights. A collective call; raises
    CheckpointError on every rank where any of them could not read its part.
    """

    def fill() -> WeightReader:
        reader = open_weights()
        if engine.zero < 3:
            reader.fill_parameters(engine.trained_parameters())
        for fragment in held_fragments(engine):
            reader.fill_weights(fragment)
        reader.check_finite()
        return reader

    reader, faults = in_agreement(fill)
    if reader is None or faults:
        raise CheckpointError(named_by_rank(faults))
    engine.publish_weights()
    if dist.get_rank() == 0:
        _log.info("weights and averages are those of %s", reader.place)
    return reader


def _try(candidate: Candidate, checkpoints: Path, engine: Engine, storage: Storage | None) -> Manifest | None:
    """Fill the engine from the folder, else from the store; None where both are damaged and set aside now."""
    if candidate.in_folder:
        manifest, faults = in_agreement(lambda: _fill(engine, checkpoints / candidate.name))
        if manifest is not None and not faults:
            engine.publish_weights()
            return manifest
        _set_aside(FolderPlace(checkpoints), str(checkpoints), candidate.name, faults)
    if candidate.in_store and storage is not None:
        faults = _fetch(Fetch(storage, candidate.name, checkpoints))
        manifest = None
        if not faults:
            manifest, faults = in_agreement(lambda: _fill(engine, checkpoints / candidate.name))
        if manifest is not None and not faults:
            engine.publish_weights()
            return manifest
        _set_aside(StorePlace(storage), storage.uri, candidate.name, faults)
    return None


def _remove(later: list[Candidate], checkpoints: Path, storage: Storage | None) -> None:
    for candidate in later:
        if candidate.in_folder:
            FolderPlace(checkpoints).remove(candidate.name)
        if candidate.in_store and storage is not None:
            StorePlace(storage).remove(candidate.name)


def _fill(engine: Engine, checkpoint: Path) -> Manifest:
    reader = CheckpointReader(checkpoint)
    if engine.zero < 3:
        reader.fill_parameters(engine.trained_parameters())
    for fragment in held_fragments(engine):
        reader.fill(fragment)
    reader.check_finite()
    return reader.manifest


def _fetch(fetch: Fetch) -> dict[int, str]:
    """Bring a checkpoint into the folder, each rank its share of the files; what was damaged, by rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    from_rank_0(fetch.begin)
    manifest, faults = in_agreement(fetch.manifest)
    if manifest is None or faults:
        return faults
    # the second round finds all there, unless ranks have folders of their own
    for files in (manifest.files[rank::world_size], manifest.files):
        _, faults = in_agreement(lambda files=files: fetch.download(files))  # type: ignore[misc]
        if faults:
            return faults
    _, faults = in_agreement(lambda: fetch.finish(manifest, rank))
    return faults


def _set_aside(place: Place, address: str, name: str, faults: dict[int, str]) -> None:
    aside = from_rank_0(lambda: place.set_aside(name))
    if dist.get_rank() == 0:
        _log.warning(
            "%s/%s IS DAMAGED: it is set aside as %s, and the checkpoint before it is taken. %s",
            address, name, aside, named_by_rank(faults),
        )  # fmt: skip
