"""The newest checkpoint that is whole into an engine, by all ranks together; or weights alone, for a new run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from megavideo.checkpoint.candidates import Candidate, find_candidates
from megavideo.checkpoint.copying import named_by_rank
from megavideo.checkpoint.fetch import Fetch
from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import DamagedError, Manifest, step_name
from megavideo.checkpoint.place import Place, Storage
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.store_place import StorePlace
from megavideo.errors import CheckpointError, MegavideoError, StoreUnreachable
from megavideo.parallel.engine import Engine
from megavideo.parallel.fragments import held_fragments

Result = TypeVar("Result")
_DAMAGED, _UNREACHABLE = "damaged", "unreachable"
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

    A collective call. Each rank verifies the files that it reads from, and all agree on whether all could: if not, the
    damaged checkpoint is set aside under the name `damaged-...`, with a warning that names file and reason, and the one
    before it is tried. One that is not in the folder, or damaged there, is fetched from `storage` where that has it;
    without `keep_fetched` it is removed again once it was read. With `at_most`, those of later steps are removed: what
    they led to is undone.

    Raises CheckpointError on every rank where none is left that is whole, and where checkpoint and model do not fit
    each other; StoreUnreachable where the store stays away.
    """
    found = _from_rank_0(lambda: find_candidates(checkpoints, storage))
    later = [candidate for candidate in found if at_most is not None and candidate.step > at_most]
    candidates = found[len(later) :]
    for candidate in candidates:
        manifest = _try(candidate, checkpoints, engine, storage)
        if manifest is not None:
            name = candidate.name
            _from_rank_0(lambda: _remove(later, checkpoints, storage))
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


def restore_weights(place: Path | str, engine: Engine) -> Manifest:
    """Fill weights and averages from a run folder's newest checkpoint, or one checkpoint, for a run that begins.

    Moments and counts are zero. Where no average was saved it begins at the weights. A collective call; raises
    CheckpointError on every rank where any of them could not read its part.
    """

    def fill() -> Manifest:
        reader = CheckpointReader(find_checkpoint(Path(place)))
        if engine.zero < 3:
            reader.fill_parameters(engine.local_parameters())
        for fragment in held_fragments(engine):
            reader.fill_weights(fragment)
        return reader.manifest

    manifest, faults = _in_agreement(fill)
    if manifest is None or faults:
        raise CheckpointError(named_by_rank(faults))
    engine.publish_weights()
    if dist.get_rank() == 0:
        _log.info("weights and averages are those of step %d of %s", manifest.step, place)
    return manifest


def _remove_after(step: int, checkpoints: Path, storage: Storage | None) -> None:
    last = step_name(step)
    places: list[Place] = [FolderPlace(checkpoints), *([] if storage is None else [StorePlace(storage)])]
    for place in places:
        for name in place.names():
            if name > last:
                place.remove(name)


def _try(candidate: Candidate, checkpoints: Path, engine: Engine, storage: Storage | None) -> Manifest | None:
    """Fill the engine from the folder, else from the store; None where both are damaged and set aside now."""
    if candidate.in_folder:
        manifest, faults = _in_agreement(lambda: _fill(engine, checkpoints / candidate.name))
        if manifest is not None and not faults:
            engine.publish_weights()
            return manifest
        _set_aside(FolderPlace(checkpoints), str(checkpoints), candidate.name, faults)
    if candidate.in_store and storage is not None:
        faults = _fetch(Fetch(storage, candidate.name, checkpoints))
        manifest = None
        if not faults:
            manifest, faults = _in_agreement(lambda: _fill(engine, checkpoints / candidate.name))
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
        reader.fill_parameters(engine.local_parameters())
    for fragment in held_fragments(engine):
        reader.fill(fragment)
    return reader.manifest


def _fetch(fetch: Fetch) -> dict[int, str]:
    """Bring a checkpoint into the folder, each rank its share of the files; what was damaged, by rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    _from_rank_0(fetch.begin)
    manifest, faults = _in_agreement(fetch.manifest)
    if manifest is None or faults:
        return faults
    # the second round finds all there, unless ranks have folders of their own
    for files in (manifest.files[rank::world_size], manifest.files):
        _, faults = _in_agreement(lambda files=files: fetch.download(files))  # type: ignore[misc]
        if faults:
            return faults
    _, faults = _in_agreement(lambda: fetch.finish(manifest, rank))
    return faults


def _set_aside(place: Place, address: str, name: str, faults: dict[int, str]) -> None:
    aside = _from_rank_0(lambda: place.set_aside(name))
    if dist.get_rank() == 0:
        _log.warning(
            "%s/%s IS DAMAGED: it is set aside as %s, and the checkpoint before it is taken. %s",
            address, name, aside, named_by_rank(faults),
        )  # fmt: skip


def _in_agreement(work: Callable[[], Result]) -> tuple[Result | None, dict[int, str]]:
    """This rank's result, and what was damaged, by rank.

    Raises an error on every rank where any failed by more than damage: StoreUnreachable where that was all, else
    CheckpointError. Ranks read files of their own, and one that fails would leave the others waiting for it.
    """
    result: Result | None = None
    mine: tuple[str, str] | None = None
    try:
        result = work()
    except DamagedError as error:
        mine = (_DAMAGED, str(error))
    except StoreUnreachable as error:
        mine = (_UNREACHABLE, str(error))
    except (MegavideoError, OSError) as error:
        mine = ("", str(error))
    found: list[tuple[str, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    faults = {rank: text for rank, (_, text) in ((r, f) for r, f in enumerate(found) if f is not None)}
    kinds = {fault[0] for fault in found if fault is not None}
    if kinds - {_DAMAGED}:
        raise (CheckpointError if "" in kinds else StoreUnreachable)(named_by_rank(faults))
    return result, faults


def _from_rank_0(work: Callable[[], Result]) -> Result:
    """What rank 0 found, on every rank. Raises CheckpointError on every rank where it failed."""
    found, _ = _in_agreement(work if dist.get_rank() == 0 else lambda: None)  # type: ignore[arg-type, return-value]
    shared = [found]
    dist.broadcast_object_list(shared)
    return shared[0]  # type: ignore[return-value]
