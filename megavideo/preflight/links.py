"""Between nodes: how far their clocks are apart, and how fast each pair exchanges bytes.

Two ranks that exchange N bytes, each way at once, send what a ring all-reduce of N bytes over the two sends. The ranks
of two nodes with the same place on their nodes exchange at the same time, so that all network cards are at work, and
the slowest of them counts. Exchanges are queued one behind the other and timed by the device, so that no rank waits for
the host of its peer in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from megavideo.parallel.machine.timer import timer_of
from megavideo.parallel.processes.distributed import call_all_ranks
from megavideo.preflight.findings import NoAnswer, answer_within

_PINGS = 10
_REPEATS = 3

# sends the first tensor to a rank and receives the second from it
Exchange = Callable[[torch.Tensor, torch.Tensor, int], None]


@dataclass(frozen=True)
class Speed:
    """What a rank saw of one exchange with a peer: bytes sent a second, or the reason why there is no number."""

    peer: int
    bytes_per_second: float
    fault: str = ""


def pairings(num_nodes: int, most_rounds: int) -> list[list[tuple[int, int]]]:
    """Rounds in which every node is in at most one pair, no pair twice; all pairs in n - 1 rounds (n if n is odd).

    The circle method of round-robin tournaments (Lucas 1883). Of more rounds than `most_rounds` those are taken that
    lie evenly between the first and the last, so that a node meets near and far ones.
    """
    seats = list(range(num_nodes)) + ([-1] if num_nodes % 2 else [])
    rounds = []
    for _ in range(len(seats) - 1):
        pairs = [(seats[i], seats[-1 - i]) for i in range(len(seats) // 2)]
        rounds.append(sorted((min(pair), max(pair)) for pair in pairs if -1 not in pair))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    if len(rounds) <= most_rounds:
        return rounds
    return [rounds[i * len(rounds) // most_rounds] for i in range(most_rounds)]


def connect(device: torch.device, seconds: float) -> None:
    """Make the group's first call on `device`, of all its ranks, before exchanges of two, of which some ranks sit out.

    Raises NoAnswer where it takes longer than `seconds`, as where NCCL cannot reach a node.
    """
    try:
        answer_within(seconds, partial(call_all_ranks, device))
    except NoAnswer as error:
        raise NoAnswer(f"the first call of all ranks had no answer in {seconds:g} s") from error


def measure_clock(first: Sequence[int], rank: int, clock: Callable[[], float], seconds: float) -> float | None:
    """How many seconds this rank's clock is ahead of that of first[0], over gloo.

    None for ranks that are not in `first`, the first rank of each node, and where an answer takes longer than
    `seconds`. first[0] is asked by one after the other; of ten answers the one that took the shortest counts, as if it
    was given in the middle of that time (Cristian 1989).
    """
    if rank not in first:
        return None
    try:
        if rank != first[0]:
            return min(_ask(first[0], clock, seconds) for _ in range(_PINGS))[1]
        for peer in first[1:]:
            for _ in range(_PINGS):
                _receive(peer, seconds)
                _send(clock(), peer, seconds)
    except NoAnswer:
        return None
    return 0.0


def measure_links(
    ranks_of: Sequence[Sequence[int]],
    rank: int,
    rounds: Sequence[Sequence[tuple[int, int]]],
    buffers: tuple[torch.Tensor, torch.Tensor],
    seconds: float,
    gate: Callable[[int, bool], bool],
    exchange: Exchange | None = None,
) -> list[Speed]:
    """This rank's exchanges in all rounds; `ranks_of` are the ranks of each node, `buffers` what is sent and received.

    After each round every rank passes the gate, with the round's number and whether its peer failed to answer in
    `seconds`; the gate tells whether the next round is made.
    """
    exchange = exchange or exchange_bytes
    node = next(i for i, ranks in enumerate(ranks_of) if rank in ranks)
    place = list(ranks_of[node]).index(rank)
    found = []
    for number, pairs in enumerate(rounds):
        peers = next((ranks_of[b if a == node else a] for a, b in pairs if node in (a, b)), ())
        if place < len(peers):
            found.append(_speed(exchange, buffers, peers[place], seconds))
        if not gate(number, bool(found and found[-1].fault)):
            break
    return found


def _speed(exchange: Exchange, buffers: tuple[torch.Tensor, torch.Tensor], peer: int, seconds: float) -> Speed:
    try:
        took = min(answer_within(seconds, partial(_laps, exchange, buffers, peer)))
    except NoAnswer:
        return Speed(peer, 0.0, f"no answer from rank {peer} in {seconds:g} s")
    except RuntimeError as error:  # gloo's and NCCL's word for a lost connection
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Speed(peer, 0.0, f"no exchange with rank {peer}: {reason}")
    return Speed(peer, buffers[0].nbytes / took)


def _laps(exchange: Exchange, buffers: tuple[torch.Tensor, torch.Tensor], peer: int) -> list[float]:
    """Seconds of each exchange after the first, which connects."""
    with torch.cuda.device_of(buffers[0]):  # a thread begins on the first GPU
        timer = timer_of(buffers[0].device)
        exchange(*buffers, peer)
        timer.mark()
        for _ in range(_REPEATS):
            exchange(*buffers, peer)
            timer.mark()
        return timer.laps()


def exchange_bytes(sent: torch.Tensor, received: torch.Tensor, peer: int) -> None:
    """Send to and receive from a rank at once. With a GPU it is queued: what is done next in its stream comes after."""
    operations = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def _ask(peer: int, clock: Callable[[], float], seconds: float) -> tuple[float, float]:
    """How long an answer took, and how far this clock is then ahead of the peer's."""
    begin = clock()
    _send(0.0, peer, seconds)
    theirs = _receive(peer, seconds)
    end = clock()
    return end - begin, (begin + end) / 2 - theirs


def _send(value: float, peer: int, seconds: float) -> None:
    _complete(dist.isend(torch.tensor([value], dtype=torch.float64), peer), seconds, peer)


def _receive(peer: int, seconds: float) -> float:
    value = torch.empty(1, dtype=torch.float64)
    _complete(dist.irecv(value, peer), seconds, peer)
    return float(value)


def _complete(work: dist.Work | None, seconds: float, peer: int) -> None:
    assert work is not None
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError as error:  # gloo's word for a time-out and for a lost connection alike
        raise NoAnswer(f"no answer from rank {peer} in {seconds:g} s ({str(error).splitlines()[0]})") from error
