"""Writing one checkpoint and waiting for it: with all processes of a run, or by one that needs no process group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import Header, Manifest, step_name
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.rank_part import RankPart, manifest_of
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.checkpoint.snapshot import Snapshot
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.errors import CheckpointError
from megavideo.parallel.engines.fragments import Fragment


def write_checkpoint(checkpoints: Path, header: Header, fragments: Iterable[Fragment], *, keep: int) -> Path:
    """Save this rank's fragments with all other ranks' and keep the newest `keep` checkpoints; a collective call.

    Raises CheckpointError on every rank where any of them failed; what was there before stays.
    """
    config = CheckpointConfig(asynchronous=False, keep_last=keep, keep_stage_ends=False)
    with Checkpointer(config, checkpoints, SaveGroup.of_run()) as checkpointer:
        checkpointer.save(header, fragments)
        checkpointer.wait(required=True)
    return checkpoints / step_name(header.step)


def write_alone(
    checkpoints: Path,
    header: Header,
    optimizer_steps: int,
    shares: Iterable[Sequence[Fragment]],
    check: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write a checkpoint from one process, one file and in memory one share at a time; its manifest.

    `check` is called after each share and may refuse it. Raises CheckpointError where `checkpoints` has one of that
    step, or the disk refuses; nothing of it is left then.
    """
    place, save, snapshot = FolderPlace(checkpoints), SaveId(header.step, "alone", 0), Snapshot()
    final = checkpoints / save.name
    if final.exists():
        raise CheckpointError(f"{final}: is there already. Remedy: give another folder as out=")
    try:
        place.begin(save)
        parts = []
        for number, fragments in enumerate(shares):
            state = snapshot.take(fragments)
            check()
            parts.append(RankPart(tuple(place.write(save, number, state)), optimizer_steps, state.shapes))
        manifest = manifest_of(header, parts)
        place.publish(save, manifest)
    except OSError as error:
        raise CheckpointError(f"{final}: cannot be written ({error}). Remedy: make room, or another out=") from error
    finally:
        place.end(save)
    return manifest
