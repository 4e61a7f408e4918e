"""`megavideo preflight`: every rank looks at its node, then all at what is between them, and rank 0 judges.

Ranks answer by a key-value store and not by collectives, so that one that hangs is missed by name. Only when all have
looked at their nodes is there a process group, for clocks and links.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megavideo.config.schema.preflight import PreflightRun
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.open import open_storage
from megavideo.data.storage.protocol import Storage
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.table.open import cache_folder
from megavideo.errors import ConfigError
from megavideo.observe.whole_file import write_file
from megavideo.parallel.processes.distributed import free_port, machine_devices, own_device, read_launch
from megavideo.preflight.findings import Finding, NoAnswer, limited
from megavideo.preflight.judge import Link, Node, PreflightReport, RankAnswer, judge
from megavideo.preflight.links import Exchange, connect, measure_clock, measure_links, pairings
from megavideo.preflight.meeting import Absent, Meeting, expected_hosts
from megavideo.preflight.node_checks import check_disk, check_gpu, check_matmul, check_versions
from megavideo.preflight.places import find_token, leave_token, new_token, read_dataset, remove_token

_LINK_SECONDS = 20.0  # the exchanges of a pair, before it counts as cut
_GROUP_FACTOR = 4.0
_SPARE_SECONDS = 10.0
_VERDICT_SECONDS = 30.0  # ranks do not begin all at once, so that those together may take so much longer


def preflight(
    config: PreflightRun, clock: Callable[[], float] = time.time, exchange: Exchange | None = None
) -> PreflightReport:
    """Check the nodes, as one of the processes that srun or torchrun started on them, or alone; the same on all ranks.

    `clock` and `exchange` stand in for the machine's own in tests. The file `bad_nodes` is written by the first rank
    on a good node. Raises ConfigError where that file cannot be written.
    """
    before = _stamp(config.bad_nodes)
    rank, local_rank, world_size = read_launch(os.environ)
    if world_size == 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    device = own_device(local_rank)
    try:
        meeting = Meeting(os.environ, rank, world_size, config.meet_seconds)
        hosts = meeting.call_roll(config.meet_seconds, expected_hosts(os.environ))
        report = _Preflight(config, meeting, hosts, device, clock, exchange).run()
    except Absent as absent:
        report = _without(absent)
        # each rank that is there writes what was agreed on; one that is alone names only whom nobody else judges
        if absent.agreed or (absent.hosts and not _is_written(config.bad_nodes, before)):
            _write_bad_nodes(config, report)
        return report
    fit = [r for r in hosts if hosts[r] not in report.bad]
    if rank == min(fit, default=0):
        _write_bad_nodes(config, report)
    return report


class _Preflight:
    """The checks of one rank."""

    def __init__(
        self,
        config: PreflightRun,
        meeting: Meeting,
        hosts: Mapping[int, str],
        device: torch.device,
        clock: Callable[[], float],
        exchange: Exchange | None,
    ) -> None:
        self._config = config
        self._meeting = meeting
        self._hosts = hosts
        self._device = device
        self._clock = clock
        self._exchange = exchange

    def run(self) -> PreflightReport:
        """All checks, and the judgement, which is rank 0's."""
        meeting, seconds = self._meeting, self._config.check_seconds
        with self._places() as places:
            answer = self._look(places)
            meeting.post("alone", _packed(answer))
            # each of the checks of a rank may take its time
            alone = meeting.collect("alone", 6 * seconds + _SPARE_SECONDS) if meeting.rank == 0 else {}
        if meeting.rank == 0:
            meeting.say("together", len(alone) == meeting.world_size)
        unlocated: list[str] = []
        answers: dict[int, RankAnswer] = {rank: _unpacked(value) for rank, value in alone.items()}
        if meeting.hear("together", 12 * seconds):
            answer = self._meet_others(answer)
            meeting.post("with_others", _packed(answer))
            if meeting.rank == 0:
                answers = {r: _unpacked(v) for r, v in meeting.collect("with_others", 2 * seconds).items()}
        else:
            unlocated.append("clocks and links were not measured: some ranks gave no answer")
        if meeting.rank == 0:
            unlocated += [fault for each in answers.values() for fault in each.link_faults]
            meeting.say("report", asdict(judge(self._hosts, answers, self._config.limits, unlocated)))
        report = _report(meeting.hear("report", 3 * seconds))
        meeting.part(answers)
        return report

    @contextmanager
    def _places(self) -> Iterator[dict[str, tuple[Storage, str | None]]]:
        """The shared places and the token that rank 0 left there, None where it could not; removed at the end."""
        config, meeting = self._config, self._meeting
        places: dict[str, Storage] = {"output": LocalStorage(Path(config.output))}
        if config.data.uri is not None:
            places["store"] = open_storage(config.data.uri, RetryPolicy(config.data.retry_seconds))
        tokens: dict[str, str | None] = {}
        if meeting.rank == 0:
            for name in [name for name in places if self._writes(name)]:
                new = new_token()
                left = limited(name, config.check_seconds, partial(leave_token, name, places[name], new))
                tokens[name] = new if left.good else None
            meeting.say("tokens", tokens)
        tokens = meeting.hear("tokens", 2 * config.check_seconds + _SPARE_SECONDS)
        yield {name: (place, tokens.get(name)) for name, place in places.items()}
        if meeting.rank == 0:
            for name, token in tokens.items():
                if token is not None:
                    limited(name, _SPARE_SECONDS, partial(remove_token, name, places[name], token))

    def _writes(self, name: str) -> bool:
        return name == "output" or self._config.data.write

    def _look(self, places: Mapping[str, tuple[Storage, str | None]]) -> RankAnswer:
        """What this rank finds alone."""
        config, devices = self._config, self._devices()
        output = Path(config.output)
        cache = cache_folder(config.output, config.data.cache)
        checks: dict[str, Callable[[], Finding]] = {
            **{name: partial(self._see, name, *place) for name, place in places.items()},
            "disk": partial(check_disk, output, cache, config.limits),
            "versions": check_versions,
            "gpu": partial(check_gpu, devices, config.limits),
            "matmul": partial(check_matmul, devices),
        }
        return RankAnswer(tuple(limited(name, config.check_seconds, check) for name, check in checks.items()))

    def _devices(self) -> list[torch.device]:
        """The rank's own, or all of its node where it is the only one there."""
        own = [rank for rank, host in self._hosts.items() if host == self._meeting.host]
        return [self._device] if len(own) > 1 else machine_devices()

    def _see(self, name: str, storage: Storage, token: str | None) -> Finding:
        if not self._writes(name):
            return read_dataset(name, storage)
        return find_token(name, storage, token, self._meeting.rank)

    def _meet_others(self, alone: RankAnswer) -> RankAnswer:
        """What this rank finds with the others; a process group that hangs is left behind."""
        got: list[RankAnswer] = []

        def measure() -> Finding:
            got.append(self._measured(alone))
            return Finding("links", True, "ok")

        outcome = limited("links", self._config.check_seconds, measure)
        if not got:
            return replace(alone, link_faults=(f"clocks and links were not measured: {outcome.text}",))
        return got[0]

    def _measured(self, alone: RankAnswer) -> RankAnswer:
        config, meeting, hosts = self._config, self._meeting, self._hosts
        ranks_of = [[r for r in sorted(hosts) if hosts[r] == host] for host in dict.fromkeys(hosts.values())]
        if len(ranks_of) == 1:
            return alone
        # torch ends a process whose call takes longer than this; each wait here has a limit of its own, far below
        limit = timedelta(seconds=_GROUP_FACTOR * config.check_seconds)
        backends = "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo"
        store = dist.PrefixStore("group", meeting.store)
        dist.init_process_group(
            backends, store=store, rank=meeting.rank, world_size=meeting.world_size, timeout=limit
        )  # fmt: skip
        wait = min(_LINK_SECONDS, config.check_seconds / 4)
        offset = measure_clock([ranks[0] for ranks in ranks_of], meeting.rank, self._clock, wait)
        alone = replace(alone, clock_seconds=offset)
        try:
            connect(self._device, config.check_seconds / 2)
        except NoAnswer as error:
            return replace(alone, link_faults=(f"links were not measured: {error}",))
        size = max(1, int(config.link_mb * 1e6))
        buffers = (
            torch.ones(size, dtype=torch.uint8, device=self._device),
            torch.empty(size, dtype=torch.uint8, device=self._device),
        )
        rounds = pairings(len(ranks_of), config.link_rounds)
        speeds = measure_links(ranks_of, meeting.rank, rounds, buffers, wait, self._gate, self._exchange)
        if all(not speed.fault for speed in speeds):
            dist.destroy_process_group()
        return replace(
            alone,
            link_speeds={speed.peer: speed.bytes_per_second for speed in speeds},
            link_faults=tuple(f"rank {meeting.rank}: {speed.fault}" for speed in speeds if speed.fault),
        )

    def _gate(self, number: int, failed: bool) -> bool:
        """Wait until every rank has made the round, or one has failed; True for the former."""
        store, word = self._meeting.store, f"gate/{number}"
        count = store.add(f"{word}/count", 1)
        if failed or count == self._meeting.world_size:
            store.compare_set(word, "", "stop" if failed else "go")
        store.wait([word], timedelta(seconds=self._config.check_seconds))
        return bool(store.get(word) == b"go")


def _packed(answer: RankAnswer) -> dict[str, Any]:
    return asdict(answer)


def _unpacked(value: Mapping[str, Any]) -> RankAnswer:
    return RankAnswer(
        tuple(Finding(**finding) for finding in value["findings"]),
        value["clock_seconds"],
        {int(peer): speed for peer, speed in value["link_speeds"].items()},  # JSON has texts for keys
        tuple(value["link_faults"]),
    )


def _without(absent: Absent) -> PreflightReport:
    nodes = tuple(Node(host, (), False, {}, ("did not come",)) for host in absent.hosts)
    return PreflightReport(nodes, absent.hosts, (), (), (str(absent),))


def _report(value: Mapping[str, Any]) -> PreflightReport:
    """The report that rank 0 said."""
    nodes = (
        Node(
            node["host"], tuple(node["ranks"]), node["good"],
            {check: Finding(**finding) for check, finding in node["checks"].items()}, tuple(node["faults"]),
        )
        for node in value["nodes"]
    )  # fmt: skip
    slow_links, links = (tuple(Link(**link) for link in value[name]) for name in ("slow_links", "links"))
    return PreflightReport(tuple(nodes), tuple(value["bad"]), slow_links, links, tuple(value["unlocated"]))


def _stamp(path: str | None) -> tuple[int, int] | None:
    """What changes whenever the file is written anew; None where it is not there."""
    try:
        found = os.stat(path or "")
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_written(path: str | None, before: tuple[int, int] | None) -> bool:
    """Whether others write the file while they are waited for."""
    end = time.monotonic() + _VERDICT_SECONDS
    while path is not None and _stamp(path) == before and time.monotonic() < end:
        time.sleep(0.1)
    return _stamp(path) != before


def _write_bad_nodes(config: PreflightRun, report: PreflightReport) -> None:
    if config.bad_nodes is None:
        return
    try:
        write_file(Path(config.bad_nodes), "".join(f"{host}\n" for host in report.bad).encode())
    except OSError as error:
        raise ConfigError(
            "bad_nodes", config.bad_nodes, f"cannot be written ({error.strerror})", "name a file in a shared folder"
        ) from error
