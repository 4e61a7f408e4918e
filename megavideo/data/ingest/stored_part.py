"""One input of a store as one unit of work."""

from __future__ import annotations

from dataclasses import replace

from megavideo.data.clips.stored import CacheError, StoredClips
from megavideo.data.ingest.examine import Recipe, examine
from megavideo.data.ingest.part import UNREACHABLE, Identity, Part
from megavideo.errors import DataError, StoreUnreachable


def examine_stored(place: StoredClips, file: str, version: str, recipe: Recipe) -> Part:
    """Measure one object, which was listed with `version`; its fault is part of the outcome, as of `examine`.

    The part tells the version that was read. Raises StoreUnreachable where the store stays away, and CacheError where
    the copy cannot be written.
    """
    address = f"{place.uri}/{file}"
    try:
        with place.fetched(file) as copy:
            part = examine(copy.path, file, recipe)
            reason = None if part.reason is None else part.reason.replace(str(copy.path), address)
            identity = replace(part.identity, mtime_ns=0, version=copy.version)
            return replace(part, identity=identity, reason=reason)
    except (StoreUnreachable, CacheError):
        raise
    except DataError as error:
        reason = str(error).removeprefix(f"{address}: ")
        return Part(file, recipe.key, Identity(version=version), None, False, (), UNREACHABLE, reason)
