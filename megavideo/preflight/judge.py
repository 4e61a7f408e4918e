"""From what ranks found to what nodes are: pure, and the same wherever it is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from megavideo.config.schema.preflight import PreflightLimits
from megavideo.preflight.findings import CHECKS, Finding

_LEAST_PAIRS = 2  # one slow pair says nothing of which of its two nodes is slow


@dataclass(frozen=True)
class RankAnswer:
    """What a rank found alone, and with the others where they got so far (`link_speeds` in bytes/s by peer)."""

    findings: tuple[Finding, ...]
    clock_seconds: float | None = None
    link_speeds: Mapping[int, float] = field(default_factory=dict)
    link_faults: tuple[str, ...] = ()

    def measured(self, check: str) -> Any:
        """What was measured in a check; None where nothing was."""
        return next((f.measured for f in self.findings if f.check == check and f.measured is not None), None)


@dataclass(frozen=True)
class Node:
    """A node: its ranks, whether it is fit, the finding of each check that was made, and every fault in words."""

    host: str
    ranks: tuple[int, ...]
    good: bool
    checks: dict[str, Finding]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """A pair of nodes and the speed of its slowest ranks, in 10^9 bytes a second each way; 0 where none answered."""

    first: str
    second: str
    gb_per_second: float
    good: bool


@dataclass(frozen=True)
class PreflightReport:
    """What came out.

    `bad` are the hosts to leave out, those that never came among them. `slow_links` are pairs that are slow though
    neither node is: a cable or a switch. `unlocated` are faults that no node can be blamed for, as one of all nodes.
    """

    nodes: tuple[Node, ...]
    bad: tuple[str, ...]
    slow_links: tuple[Link, ...]
    links: tuple[Link, ...]
    unlocated: tuple[str, ...]


def judge(
    hosts: Mapping[int, str], answers: Mapping[int, RankAnswer], limits: PreflightLimits, unlocated: Sequence[str] = ()
) -> PreflightReport:
    """What the answers of the ranks say of their nodes; `hosts` are those of all ranks, answered or not."""
    findings = {rank: list(answer.findings) for rank, answer in answers.items()}
    for rank, finding in _relative(hosts, answers, limits):
        findings[rank].append(finding)
    links = _links(hosts, answers, limits)
    slow_nodes = _slow_nodes(links)
    nodes = []
    for host in dict.fromkeys(hosts[rank] for rank in sorted(hosts)):
        ranks = tuple(rank for rank in sorted(hosts) if hosts[rank] == host)
        own = [link for link in links if host in (link.first, link.second)]
        found = [finding for rank in ranks for finding in findings.get(rank, [])]
        if own:
            found.append(_link_finding(host, own, host in slow_nodes))
        silent = [f"rank {rank} gave no answer" for rank in ranks if rank not in answers]
        nodes.append(_node(host, ranks, _by_check(found), [f for f in found if not f.good], silent))
    nodes, common = _without_common_faults(nodes)
    bad = tuple(node.host for node in nodes if not node.good)
    slow = tuple(link for link in links if not link.good and not {link.first, link.second} & set(bad))
    return PreflightReport(tuple(nodes), bad, slow, links, tuple(dict.fromkeys([*unlocated, *common])))


def _node(
    host: str, ranks: tuple[int, ...], checks: dict[str, Finding], bad: Sequence[Finding], others: Sequence[str]
) -> Node:
    faults = dict.fromkeys([*(f"{finding.check}: {finding.text}" for finding in bad), *others])
    return Node(host, ranks, not faults, checks, tuple(faults))


def _without_common_faults(nodes: Sequence[Node]) -> tuple[list[Node], list[str]]:
    """A check that fails on all of several nodes that answer tells of what they share or of its limit, not of them."""
    answered = [node for node in nodes if node.checks]
    failed = [{check for check, finding in node.checks.items() if not finding.good} for node in answered]
    common = set.intersection(*failed) if len(answered) > 1 else set()
    left = []
    for node in nodes:
        faults = tuple(fault for fault in node.faults if fault.partition(":")[0] not in common)
        left.append(replace(node, faults=faults, good=not faults))
    texts = [f"{check} fails on all {len(answered)} nodes: {answered[0].checks[check].text}"
             for check in CHECKS if check in common]  # fmt: skip
    return left, texts


def _by_check(found: Sequence[Finding]) -> dict[str, Finding]:
    """Of each check the first bad finding, else the last one, which had the others to compare with."""
    chosen: dict[str, Finding] = {}
    for finding in found:
        if finding.check not in chosen or chosen[finding.check].good:
            chosen[finding.check] = finding
    return {check: chosen[check] for check in CHECKS if check in chosen}


def _relative(
    hosts: Mapping[int, str], answers: Mapping[int, RankAnswer], limits: PreflightLimits
) -> Iterable[tuple[int, Finding]]:
    """Findings that only a comparison with the others gives."""
    times = {rank: seconds for rank, answer in answers.items() if (seconds := answer.measured("matmul")) is not None}
    middle = median(times.values()) if times else 0.0
    for rank, seconds in times.items():
        good = seconds <= limits.matmul_factor * middle
        text = f"{seconds * 1e3:.2f} ms"
        yield (
            rank,
            Finding("matmul", good, text if good else f"rank {rank}: {text}, the median is {middle * 1e3:.2f}"),
        )
    yield from _unlike("versions", {r: found for r, a in answers.items() if (found := a.measured("versions"))})
    hashes = {r: {"dataset.json": found} for r, a in answers.items() if (found := a.measured("store"))}
    yield from _unlike("store", hashes)
    offsets = {rank: answer.clock_seconds for rank, answer in answers.items() if answer.clock_seconds is not None}
    if len(offsets) > 1:
        # all are measured against rank 0, which may itself be the one that is wrong
        agree = sum(abs(offset) <= limits.clock_seconds for offset in offsets.values())
        right = 0.0 if 2 * agree >= len(offsets) else median(offsets.values())
        for rank, offset in offsets.items():
            text = f"{(offset - right) * 1e3:+.1f} ms"
            good = abs(offset - right) <= limits.clock_seconds
            yield rank, Finding("clock", good, text if good else f"is {offset - right:+.3f} s off the others")


def _unlike(check: str, values: Mapping[int, Mapping[str, str]]) -> Iterable[tuple[int, Finding]]:
    """Findings of ranks whose values are compared, name by name, with what most have."""
    names = sorted({name for mine in values.values() for name in mine})
    most = {name: Counter(mine.get(name, "none") for mine in values.values()).most_common(1)[0][0] for name in names}
    for rank, mine in values.items():
        other = [f"{name} {mine.get(name, 'none')}, most have {most[name]}" for name in names
                 if mine.get(name, "none") != most[name]]  # fmt: skip
        yield rank, Finding(check, not other, "; ".join(other) or "ok")


def _links(hosts: Mapping[int, str], answers: Mapping[int, RankAnswer], limits: PreflightLimits) -> tuple[Link, ...]:
    slowest: dict[tuple[str, str], float] = {}
    for rank, answer in answers.items():
        for peer, speed in answer.link_speeds.items():
            pair = min(hosts[rank], hosts[peer]), max(hosts[rank], hosts[peer])
            slowest[pair] = min(slowest.get(pair, speed), speed)
    if not slowest:
        return ()
    # of each node the best pair: one bad node of four makes half of all pairs slow, and of the nodes a quarter
    hosts_met = {host for pair in slowest for host in pair}
    expected = median(max(speed for pair, speed in slowest.items() if host in pair) for host in hosts_met)
    if limits.link_gb_per_second is not None:
        expected = limits.link_gb_per_second * 1e9
    return tuple(
        Link(*pair, speed / 1e9, speed >= limits.link_share * expected) for pair, speed in sorted(slowest.items())
    )


def _slow_nodes(links: Sequence[Link]) -> set[str]:
    """Nodes most of whose pairs are slow; pairs with the worst of them are left out before the next is looked for."""
    slow: set[str] = set()
    while True:
        left = [link for link in links if not {link.first, link.second} & slow]
        total = Counter(host for link in left for host in (link.first, link.second))
        bad = Counter(host for link in left if not link.good for host in (link.first, link.second))
        share = {host: bad[host] / total[host] for host in bad if total[host] >= _LEAST_PAIRS}
        worst = max(share, key=lambda host: (share[host], bad[host]), default=None)
        if worst is None or share[worst] <= 0.5:
            return slow
        slow.add(worst)


def _link_finding(host: str, own: Sequence[Link], slow: bool) -> Finding:
    speeds = [link.gb_per_second for link in own]
    text = f"{median(speeds):.2f} GB/s"
    if not slow:
        return Finding("links", True, text)
    bad = [link.second if link.first == host else link.first for link in own if not link.good]
    return Finding("links", False, f"{len(bad)} of {len(own)} pairs are slow ({text} in the middle)")
