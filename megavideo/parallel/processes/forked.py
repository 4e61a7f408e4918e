"""Ranks forked from a server on this machine: who they are, and that they end with the process that asked for them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import MutableMapping

# by which torchrun, or srun in a job of several tasks, says who the process is that asked for the ranks
_ANOTHER_START = ("SLURM_PROCID", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")


def become_rank(rank: int, world_size: int, port: int) -> None:
    """Let this process, forked for it, be one rank of several on this machine, whose store listens on `port`."""
    end_with_parent()
    name_rank(os.environ, rank, world_size, port)


def name_rank(environment: MutableMapping[str, str], rank: int, world_size: int, port: int) -> None:
    """Set torchrun's variables for a rank of this machine, wherever the process that asked for it was started."""
    for name in _ANOTHER_START:
        environment.pop(name, None)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    environment.update({name: str(value) for name, value in zip(names, (rank, rank, world_size, port), strict=True)})
    environment["MASTER_ADDR"] = "127.0.0.1"
    stay_on_this_machine(environment)


def stay_on_this_machine(environment: MutableMapping[str, str]) -> None:
    """Let gloo bind to the loopback interface, unless one is named already.

    Else it asks the name server for this host's own name at every new group: for 10 s where none answers.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback)


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
