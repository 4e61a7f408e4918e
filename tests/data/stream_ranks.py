"""Ranks as processes that read a whole dataset each, with forked workers, and tell what came of it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.stream.counts import StreamCounts
from megavideo.data.stream.shards import LatentSample, ShardReader, StreamOptions
from megavideo.errors import MegavideoError


@dataclass(frozen=True)
class Reading:
    """What a rank is to do; `pause` seconds after each sample, `file_bytes` a limit of the system on any file."""

    uri: str
    cache: Path
    retry: RetryPolicy
    workers: int = 2
    cache_bytes: float | None = None
    pause: float = 0.0
    file_bytes: int | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of it: the digest of all samples, or the error of the user's kind, and the seconds that it took."""

    digest: str
    error: str
    seconds: float
    counts: StreamCounts | None


def digest_of(samples: Sequence[LatentSample]) -> str:
    """One digest of samples, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.latent.numpy().tobytes() + sample.text.numpy().tobytes())
    return digest.hexdigest()


def read_all(reading: Reading, seed: int) -> Outcome:
    """Read every sample, in an order of the rank's own, and digest them in the order of the manifest."""
    os.environ.update(reading.environment)
    if reading.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (reading.file_bytes, resource.RLIM_INFINITY))
    begin, reader = time.monotonic(), None
    try:
        dataset = open_dataset(reading.uri, reading.retry)
        reader = ShardReader(dataset, reading.cache, StreamOptions(reading.workers, reading.cache_bytes))
        order = list(range(dataset.info.num_samples))
        random.Random(seed).shuffle(order)
        samples = {}
        with reader.working():
            for place, index in enumerate(order):
                reader.expect(order[place : place + 8])
                samples[index] = reader.read(index)
                time.sleep(reading.pause)
        digest, error = digest_of([samples[i] for i in sorted(samples)]), ""
    except MegavideoError as fault:
        digest, error = "", f"{type(fault).__name__}: {fault}"
    finally:
        if reading.file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return Outcome(digest, error, time.monotonic() - begin, reader.counts() if reader else None)


def _serve(connection: Connection, rank: int) -> None:
    connection.send("ready")
    while True:
        try:
            reading = connection.recv()
        except EOFError:
            return
        connection.send(read_all(reading, rank))


class Ranks:
    """Started once, as starting them takes longer than reading."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections, self.processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank))
            process.start()
            theirs.close()
            self._connections.append(ours)
            self.processes.append(process)
        for connection in self._connections:
            assert connection.recv() == "ready"

    def begin(self, reading: Reading) -> None:
        """Set all ranks to work."""
        for connection in self._connections:
            connection.send(reading)

    def outcomes(self, most_seconds: float) -> list[Outcome]:
        """Of every rank; fails where one takes longer."""
        end, outcomes = time.monotonic() + most_seconds, []
        for rank, connection in enumerate(self._connections):
            assert connection.poll(max(0.0, end - time.monotonic())), f"rank {rank} hangs"
            outcomes.append(connection.recv())
        return outcomes

    def read(self, reading: Reading, most_seconds: float = 30.0) -> list[Outcome]:
        """Have all ranks read."""
        self.begin(reading)
        return self.outcomes(most_seconds)

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.join(5)
            process.kill()
