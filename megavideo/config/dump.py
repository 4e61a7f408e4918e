"""Text of a resolved config, as a run folder keeps it, and the way back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from megavideo.border.files import read_file
from megavideo.border.refused import Refused
from megavideo.border.secrets import Secrets
from megavideo.border.yaml_text import parse_yaml
from megavideo.config.build import build
from megavideo.config.rules import check
from megavideo.errors import ConfigError

T = TypeVar("T")


def to_yaml(cfg: object) -> str:
    """Every setting of `cfg`, a dataclass, as YAML in order of declaration, without interpolations and secrets."""
    values = Secrets.of_process().hide_all(_plain(dataclasses.asdict(cast(Any, cfg))))
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def from_yaml(schema: type[T], text: str, source: str = "config.yaml") -> T:
    """The config that `to_yaml` wrote, built strictly and held to the rules.

    `source` is the file named in the error. Raises ConfigError when the text is not YAML or breaks a rule.
    """
    try:
        values = parse_yaml(text)
    except Refused as error:
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


def read_config(schema: type[T], path: Path) -> T:
    """The config in a run's file; raises as `from_yaml` does, also where it is no regular file or no UTF-8."""
    try:
        text = read_file(path).decode("utf-8")
    except (OSError, Refused, UnicodeDecodeError) as error:
        raise ConfigError(
            str(path), None, f"cannot be read ({error})", "restore the file from the run that wrote it"
        ) from error
    return from_yaml(schema, text, str(path))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
