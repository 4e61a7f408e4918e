"""Which inputs are this process's: all, a share that was asked for, or the share of a task of a SLURM job array."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from megavideo.config.texts import Share, parse_share
from megavideo.errors import ConfigError


def find_share(shard: str | None, environment: Mapping[str, str]) -> Share:
    """The share of `shard`, else of the job array that `environment` tells of, else the whole.

    Raises ConfigError for a job array whose numbers are not evenly spaced: then no task knows its place.
    """
    if shard is not None:
        return parse_share("shard", shard)
    count = int(environment.get("SLURM_ARRAY_TASK_COUNT", "1"))
    task = environment.get("SLURM_ARRAY_TASK_ID")
    if count == 1 or task is None:
        return Share(0, 1)
    first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
    last = int(environment.get("SLURM_ARRAY_TASK_MAX", str(first + count - 1)))
    step = (last - first) // (count - 1)
    if (last - first) % (count - 1) or (int(task) - first) % step:
        rule = f"the job array has {count} tasks that are not evenly spaced from {first} to {last}"
        raise ConfigError("shard", None, rule, f"give shard=i/{count} to each task, or take --array=0-{count - 1}")
    return Share((int(task) - first) // step, count)


def is_in_share(file: str, share: Share) -> bool:
    """True for the inputs of a share: by a hash of the name, so that it depends on no other input."""
    digest = hashlib.sha256(file.encode()).digest()
    return int.from_bytes(digest[:8], "big") % share.count == share.index
