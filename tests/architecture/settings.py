"""Laws about YAML files: every key is a field of the schema, and every file is reached by a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from megavideo.config.find import group_defaults, group_options
from megavideo.config.load import compose_values


def unknown_keys(schema: type[Any], values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Keys of a composed config that are no field of the schema."""
    hints = get_type_hints(schema)
    names = {field.name for field in dataclasses.fields(schema)}
    for key, value in values.items():
        place = f"{path}.{key}" if path else key
        if key not in names:
            yield f"{place} is no field of {schema.__name__}"
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            yield from unknown_keys(hints[key], value, place)


def unknown_yaml_keys(folder: Path, schemas: Mapping[str, type[Any]]) -> Iterator[str]:
    """The same for every primary config with every option of every group; `MEGAVIDEO_CONFIGS` must name `folder`."""
    for primary, schema in schemas.items():
        choices: list[list[str]] = [[]]
        for group in group_defaults(folder, primary):
            choices += [[f"{group}={option}"] for option in group_options(folder, group)]
        for words in choices:
            for fault in unknown_keys(schema, compose_values(schema, primary, words)):
                yield f"{primary} {' '.join(words)}: {fault}"


def stray_files(folder: Path, primaries: Iterable[str]) -> Iterator[str]:
    """YAML files that no command can reach."""
    known = set(primaries)
    groups = {group for primary in known for group in group_defaults(folder, primary)}
    for path in sorted(folder.rglob("*.yaml")):
        place = path.relative_to(folder)
        reached = place.stem in known if len(place.parts) == 1 else str(place.parent) in groups
        if not reached:
            yield f"{place} belongs to no command"
