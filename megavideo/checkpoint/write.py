"""Writing one checkpoint and waiting for it, with as many processes as there are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megavideo.checkpoint.manifest import Header, step_name
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.config.schema.checkpoint import CheckpointConfig
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
