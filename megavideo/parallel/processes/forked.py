"""Ranks forked from a server on this machine: who they are, and that they end with the process that asked for them."""

from __future__ import annotations

import multiprocessing
import os
import threading


def become_rank(rank: int, world_size: int, port: int) -> None:
    """Let this process, forked for it, be one rank of several on this machine, whose store listens on `port`."""
    end_with_parent()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    os.environ.update({name: str(value) for name, value in zip(names, (rank, rank, world_size, port), strict=True)})
    os.environ["MASTER_ADDR"] = "127.0.0.1"


def end_with_parent() -> None:
    """End this process, with status 1, once the one that asked for it is gone, were it by SIGKILL.

    Its system parent is the server and not that one. Without this, ranks that wait for each other do so until their
    collective times out, and one that does not wait goes on for good.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was not forked for another one"

    def watch() -> None:
        parent.join()  # the other end of a pipe, which no kind of death leaves open
        os._exit(1)

    threading.Thread(target=watch, name="megavideo-parent", daemon=True).start()
