"""Settings of `megavideo checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class CheckpointVerbRun:
    """How `megavideo checkpoint` looks at checkpoints, or writes one anew.

    `hashes` lets `ls` read every file, so that it says more than that all are there, and in a folder in full size.
    `verify` does that always, and with `values` also names every tensor that holds a value that is not finite.
    `reshard` writes the checkpoint into the folder `out`, in `ranks` files of about the same size.
    """

    hashes: bool = False
    values: bool = True
    out: str | None = None
    ranks: int | None = setting(None, minimum=1)
