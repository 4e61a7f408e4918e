"""What every rule about settings without effect does: refuse the first that was set though nothing reads it."""

from __future__ import annotations

import dataclasses
from typing import Any

from megavideo.errors import ConfigError


def refuse_set(section: str, given: Any, names: tuple[str, ...], rule: str, remedy: str) -> None:
    """Raise ConfigError for the first of the fields `names` of `given` that differs from its schema's default.

    `section` is the dotted path of `given`, empty for the whole config.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(given)}
    for name in names:
        value = getattr(given, name)
        if value != defaults[name]:
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(f"{section}.{name}" if section else name, shown, rule, remedy)
