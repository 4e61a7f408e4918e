"""Names of settings: every dotted path of a schema, and the nearest known name to a mistyped one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_type_hints


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """One setting of a schema: its dotted path, type hint, dataclass default (or MISSING) and range metadata."""

    path: str
    hint: Any
    default: Any
    metadata: Mapping[str, Any]


def walk(schema: type[Any], prefix: str = "") -> Iterator[FieldInfo]:
    """Every leaf setting of a dataclass and of the dataclasses nested in it, in order of declaration."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        path = f"{prefix}.{field.name}" if prefix else field.name
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from walk(cast(type[Any], hint), path)
        else:
            yield FieldInfo(path, hint, field.default, field.metadata)


def required(schema: type[Any]) -> list[str]:
    """Dotted paths of the texts that a user must say: those without a default that come with a remedy."""
    texts = [field for field in walk(schema) if field.hint is str and field.default is dataclasses.MISSING]
    return [field.path for field in texts if field.metadata.get("remedy")]


def schemas(schema: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any]]]:
    """Dotted path and dataclass of `schema` itself (an empty path) and of those nested in it."""
    yield prefix, schema
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from schemas(cast(type[Any], hint), f"{prefix}.{field.name}" if prefix else field.name)


def setting_names(schema: type[Any]) -> frozenset[str]:
    """Every name of the schema that a value can be given to: those of settings, and of the sections that hold them."""
    return frozenset([field.path for field in walk(schema)] + [path for path, _ in schemas(schema) if path])


def texts_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and text of every text in a config; names in a mapping are texts as well."""
    if isinstance(value, str):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from texts_of(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_of(key, f"the name in {path}")
            yield from texts_of(item, f"{path}.{key}")
    elif isinstance(value, tuple | list):
        for place, item in enumerate(value):
            yield from texts_of(item, f"{path}[{place}]")


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name a user most likely meant, or None.

    The same last part wins (`lr` means `optim.lr`), then the closest whole name, then the closest last part.
    """
    last = {candidate: candidate.rsplit(".", 1)[-1] for candidate in known}
    tail = name.rsplit(".", 1)[-1]
    exact = [candidate for candidate in known if last[candidate] == tail]
    pool = exact or list(known)
    whole = difflib.get_close_matches(name, pool, n=1, cutoff=0.0 if exact else 0.7)
    if whole:
        return whole[0]
    # the last part alone says less, and nothing new of a name that has no other part
    part = difflib.get_close_matches(tail, [end for end in last.values() if end not in known], n=1, cutoff=0.6)
    if not part:
        return None
    return next(candidate for candidate in known if last[candidate] == part[0])
