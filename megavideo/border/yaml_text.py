"""YAML from outside: plain values, of bounded depth and size also where aliases repeat a part many times over."""

from __future__ import annotations

from typing import Any

import yaml

from megavideo.border.refused import Refused

_MOST_CHARACTERS = 8 << 20
_MOST_DEPTH = 64
_MOST_NODES = 200_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str | bytes) -> Any:
    """The plain values of a YAML text (bytes are UTF-8). Raises Refused with the reason, and the line where it has one.

    An alias counts as many nodes as what it stands for, so that no few lines become more than memory or time takes.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if len(text) > _MOST_CHARACTERS:
            raise Refused(f"it has {len(text)} characters, and at most {_MOST_CHARACTERS} are read")
        _check_size(text)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error, Refused):
            raise
        # an unhashable key, or digits that make no date, end the library in errors of Python's own
        raise Refused(" ".join(str(error).split()) or type(error).__name__) from error


def _check_size(text: str) -> None:
    """Count nodes as they would be with every alias written out."""
    anchors: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise Refused(f"line {event.start_mark.line + 1}: an alias of what is not there, or not whole yet")
            count += anchors[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                anchors[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                anchors[event.anchor] = 1
        if len(open_nodes) > _MOST_DEPTH:
            raise Refused(f"line {event.start_mark.line + 1}: it is nested more than {_MOST_DEPTH} deep")
        if count > _MOST_NODES:
            raise Refused(f"line {event.start_mark.line + 1}: it has more than {_MOST_NODES} values, aliases included")
