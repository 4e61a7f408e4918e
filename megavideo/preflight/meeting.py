"""Where the ranks meet before there is a process group: a key-value store at rank 0, or at torchrun's agent.

Everything that may be missing is asked for here with a limit, because a collective has none that names a rank.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megavideo.border.json_text import parse_json
from megavideo.errors import TopologyError

_POLL_SECONDS = 0.05
_SPARE_SECONDS = 10.0  # for the word of rank 0 to arrive


class Absent(TopologyError):
    """Ranks that did not come; `hosts` are the names of their nodes as far as they are known.

    Where it is `agreed` rank 0 told it to all; else it is what one rank sees, which may itself be the one cut off.
    """

    def __init__(self, message: str, hosts: Sequence[str], agreed: bool = False) -> None:
        super().__init__(message)
        self.hosts = tuple(hosts)
        self.agreed = agreed


def host_name(environment: Mapping[str, str]) -> str:
    """The name of this machine, by Slurm's word for it where it has one."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]


def host_names(node_list: str) -> list[str]:
    """The hosts of a Slurm node list: `gpu[07-09,12],x` -> gpu07, gpu08, gpu09, gpu12, x."""
    found = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", node_list):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", item)
        if match is None:
            found.append(item)
            continue
        for part in match[2].split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            found += [name for number in numbers for name in host_names(f"{match[1]}{number:0{len(first)}d}{match[3]}")]
    return found


class Meeting:
    """The store of `world_size` ranks. Values are JSON. Raises Absent where the store is not there in time."""

    def __init__(self, environment: Mapping[str, str], rank: int, world_size: int, seconds: float) -> None:
        self.rank, self.world_size = rank, world_size
        self.host = host_name(environment)
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        is_server = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        try:
            store = dist.TCPStore(
                address, port, world_size, is_server, timedelta(seconds=seconds), wait_for_workers=False
            )
        except RuntimeError as error:
            raise Absent(
                f"rank 0 at {address}:{port} cannot be reached in {seconds:g} s ({_first_line(error)}). Remedy: see "
                "whether its node is up and the port is open between the nodes",
                [] if is_server else [address.split(".")[0]],
            ) from error
        self.store = dist.PrefixStore(f"preflight/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def call_roll(self, seconds: float, expected_hosts: Iterable[str] = ()) -> dict[int, str]:
        """The host of each rank, once all are there.

        Raises Absent on every rank that is there, with the ranks that are not and those of `expected_hosts` from which
        none is. Rank 0 decides, so that all say the same.
        """
        self.post("roll", self.host)
        there = self.collect("roll", seconds) if self.rank == 0 else {}
        if self.rank == 0:
            missing = [rank for rank in range(self.world_size) if rank not in there]
            hosts = sorted(set(expected_hosts) - set(there.values())) if missing else []
            self.say("roll_called", {"missing": missing, "hosts": hosts, "there": there})
        verdict = self.hear("roll_called", seconds + _SPARE_SECONDS)
        if verdict["missing"]:
            self.part(there)
            ranks = ", ".join(map(str, verdict["missing"]))
            named = f", among them all of {', '.join(verdict['hosts'])}" if verdict["hosts"] else ""
            raise Absent(
                f"{len(verdict['missing'])} of {self.world_size} ranks did not come in {seconds:g} s: {ranks}{named}. "
                "Remedy: see whether their nodes are up and start the program, or give meet_seconds more",
                verdict["hosts"],
                agreed=True,
            )
        return {int(rank): str(host) for rank, host in verdict["there"].items()}  # JSON has texts for keys

    def post(self, topic: str, value: Any) -> None:
        """Leave this rank's value under a topic."""
        self.store.set(f"{topic}/{self.rank}", json.dumps(value))

    def collect(self, topic: str, seconds: float, ranks: Iterable[int] | None = None) -> dict[int, Any]:
        """The values of those of `ranks` (None: all) that left one in time, by rank."""
        keys = {rank: f"{topic}/{rank}" for rank in (range(self.world_size) if ranks is None else ranks)}
        end = time.monotonic() + seconds
        while not self.store.check(list(keys.values())):
            if time.monotonic() > end:
                keys = {rank: key for rank, key in keys.items() if self.store.check([key])}
                break
            time.sleep(_POLL_SECONDS)
        values = self.store.multi_get(list(keys.values())) if keys else []
        return {rank: parse_json(value) for rank, value in zip(keys, values, strict=True)}

    def say(self, topic: str, value: Any) -> None:
        """Rank 0's word to all."""
        self.store.set(topic, json.dumps(value))

    def hear(self, topic: str, seconds: float) -> Any:
        """Rank 0's word. Raises Absent where it does not come in time."""
        end = time.monotonic() + seconds
        try:
            while not self.store.check([topic]):
                if time.monotonic() > end:
                    raise Absent(f"rank 0 said nothing for {seconds:g} s. Remedy: see what its node does", [])
                time.sleep(_POLL_SECONDS)
            return parse_json(self.store.get(topic))
        except RuntimeError as error:
            raise Absent(f"rank 0 is gone ({_first_line(error)}). Remedy: see what its node does", []) from error

    def part(self, ranks: Iterable[int]) -> None:
        """Say that this rank has heard all it needs; rank 0, with which the store ends, waits a while for `ranks`."""
        self.post("parted", None)
        if self.rank == 0:
            self.collect("parted", _SPARE_SECONDS, ranks)


def expected_hosts(environment: Mapping[str, str]) -> list[str]:
    """The hosts on which Slurm started this step; none where it did not."""
    return host_names(environment.get("SLURM_STEP_NODELIST", ""))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
