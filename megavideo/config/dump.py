"""Text of a resolved config, as a run folder keeps it, and the way back."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

import yaml

from megavideo.config.build import build
from megavideo.config.rules import check
from megavideo.errors import ConfigError

T = TypeVar("T")


def to_yaml(cfg: object) -> str:
    """Every setting of `cfg`, a dataclass, as YAML in order of declaration, without interpolations."""
    text: str = yaml.safe_dump(_plain(dataclasses.asdict(cast(Any, cfg))), sort_keys=False, allow_unicode=True)
    return text


def from_yaml(schema: type[T], text: str, source: str = "config.yaml") -> T:
    """The config that `to_yaml` wrote, built strictly and held to the rules.

    `source` is the file named in the error. Raises ConfigError when the text is not YAML or breaks a rule.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            source, None, f"is not YAML: {error}", "restore the file from the run that wrote it"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            source, values, "must be a mapping of settings", "restore the file from the run that wrote it"
        )
    cfg = build(schema, values)
    check(cfg)
    return cfg


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
