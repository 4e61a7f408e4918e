"""Settings of `megavideo preflight`."""

from __future__ import annotations

from dataclasses import dataclass, field

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class PreflightData:
    """The store that the run will read from (section `data`).

    With `write` every rank also writes a small object under `uri`, reads it back and removes it, and reads one that
    rank 0 wrote; without, every rank reads `dataset.json`. `cache` is where a run keeps shards (null: `output`/cache).
    """

    uri: str | None = None
    write: bool = True
    cache: str | None = None
    retry_seconds: float = setting(10.0, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class PreflightLimits:
    """What a node must come up to (section `limits`).

    Free space is in 10^9 bytes; `gpu_free_share` of each GPU's memory must be free. `clock_seconds` is how far a clock
    may be from those of most nodes. `gpus_per_node` null takes any number. A device may take `matmul_factor` times as
    long for a matrix product as the median of all. A pair of nodes must reach `link_share` of `link_gb_per_second`, or
    for null of the best pair of a middling node.
    """

    output_gb: float = setting(10.0, minimum=0.0)
    cache_gb: float = setting(10.0, minimum=0.0)
    shm_gb: float = setting(1.0, minimum=0.0)
    gpu_free_share: float = setting(0.9, minimum=0.0, maximum=1.0)
    gpus_per_node: int | None = setting(None, minimum=0)
    clock_seconds: float = setting(1.0, above=0.0)
    matmul_factor: float = setting(1.5, above=1.0)
    link_gb_per_second: float | None = setting(None, above=0.0)
    link_share: float = setting(0.5, above=0.0, maximum=1.0)


@dataclass(frozen=True, kw_only=True)
class PreflightRun:
    """All settings of `megavideo preflight`, which is started like the run: one process for each GPU, or each node.

    `output` is the folder that will hold the run folders, on a file system that all nodes share. The names of bad nodes
    are written to the file `bad_nodes`, one a line; it is empty where all are good. Ranks that have not come after
    `meet_seconds` are missing, and a check that takes longer than `check_seconds` has failed. Nodes are paired in at
    most `link_rounds` rounds, in each of which every node exchanges `link_mb` 10^6 bytes with another: up to
    `link_rounds` + 1 nodes each meets every other.
    """

    output: str = "runs"
    bad_nodes: str | None = None
    data: PreflightData = field(default_factory=PreflightData)
    limits: PreflightLimits = field(default_factory=PreflightLimits)
    meet_seconds: float = setting(300.0, above=0.0)
    check_seconds: float = setting(120.0, above=0.0)
    link_mb: float = setting(64.0, above=0.0)
    link_rounds: int = setting(15, minimum=1)
