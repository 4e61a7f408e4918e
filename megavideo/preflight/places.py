"""Places that all nodes share, a store and a folder: does every rank see what another one wrote, and may it write?"""

from __future__ import annotations

import secrets
import time

import xxhash

from megavideo.data.storage.protocol import Storage
from megavideo.preflight.findings import Finding

_DATASET_FILE = "dataset.json"
# attribute caches of network file systems hide a new file for a while
_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.1


def new_token() -> str:
    """A name that no other preflight has."""
    return secrets.token_hex(8)


def leave_token(name: str, storage: Storage, token: str) -> Finding:
    """Write what the others are to read (rank 0)."""
    storage.write_bytes(_name(token, "all"), token.encode())
    return Finding(name, True, "ok")


def find_token(name: str, storage: Storage, token: str | None, rank: int) -> Finding:
    """Read what rank 0 wrote, None if it could not; write, read and remove a small file of this rank's own."""
    if token is not None and (fault := _unseen(storage, token)):
        return Finding(name, False, fault)
    own, content = _name(token or new_token(), str(rank)), secrets.token_bytes(1024)
    storage.write_bytes(own, content)
    try:
        same = storage.read_bytes(own) == content
    finally:
        storage.delete(own)
    return Finding(name, same, "ok" if same else f"{storage.uri}: what was written reads differently")


def _unseen(storage: Storage, token: str) -> str | None:
    end = time.monotonic() + _SETTLE_SECONDS
    while not storage.exists(_name(token, "all")):
        if time.monotonic() > end:
            return f"{storage.uri}: what rank 0 wrote is not there: another place of that name, or a stale mount"
        time.sleep(_POLL_SECONDS)
    if storage.read_bytes(_name(token, "all")) != token.encode():
        return f"{storage.uri}: what rank 0 wrote reads differently here"
    return None


def remove_token(name: str, storage: Storage, token: str) -> Finding:
    """Remove what was left for the others (rank 0)."""
    storage.delete(_name(token, "all"))
    return Finding(name, True, "ok")


def read_dataset(name: str, storage: Storage) -> Finding:
    """Read the description of a dataset where nothing may be written; its xxh64 is to be compared."""
    return Finding(name, True, "ok", xxhash.xxh64(storage.read_bytes(_DATASET_FILE)).hexdigest())


def _name(token: str, which: str) -> str:
    return f".preflight-{token}-{which}"
