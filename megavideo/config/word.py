"""A setting as it is written on the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"[\w./*?%+@-]+")


def as_word(name: str, value: Any) -> str:
    """`name=value`, ready for a shell, of a setting's value: a number, a text, None, or lists and mappings of them."""
    return shlex.quote(f"{name}={_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
