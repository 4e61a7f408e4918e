"""From override words to a checked config: parse, compose with Hydra, build strictly, apply the rules.

Every fault of a user is a `ConfigError`; no exception of Hydra or OmegaConf leaves this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megavideo.config.build import build
from megavideo.config.curriculum import GROUP, STAGES, check_stage_key, stage_names, stages_of, with_stages
from megavideo.config.find import configs_folder, group_defaults, group_options
from megavideo.config.names import nearest, required, schemas, walk
from megavideo.config.rules import check
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError

T = TypeVar("T")


def load(schema: type[T], primary: str, overrides: Sequence[str]) -> T:
    """Compose `configs/<primary>.yaml` with `overrides` (Hydra's grammar), build `schema` and apply its rules.

    Raises ConfigError for a word that cannot be parsed, an unknown key (naming the nearest), an unknown option of a
    group (listing the legal ones), a value the builder refuses and a broken rule.
    """
    cfg = build(schema, compose_values(schema, primary, overrides))
    if isinstance(cfg, TrainRun) and cfg.stages:
        stages_of(cfg)  # each is held to the rules by itself
    else:
        check(cfg)
    return cfg


def compose_values(schema: type[Any], primary: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The composed plain values before they are built; required ones that are still open read `???`."""
    folder = configs_folder()
    words, plain, said = _checked(schema, folder, primary, overrides)
    try:
        with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
            composed = compose(config_name=primary, overrides=words)
        found = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        given = " ".join(overrides) or None
        raise ConfigError(primary, given, _first_line(error), "correct the overrides, or the file it names") from error
    named = {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    values = named | plain
    return with_stages(values, said) if STAGES in {field.path for field in walk(schema)} else values


def _checked(
    schema: type[Any], folder: Path, primary: str, overrides: Sequence[str]
) -> tuple[list[str], dict[str, Any], list[str]]:
    """Overrides as Hydra shall see them: each key is known, each option exists, nothing is said twice.

    Also the values of settings that Hydra shall not see: it takes those called as a group of other commands for it; and
    the keys of all settings that were said.
    """
    groups = group_defaults(folder, primary)
    settings = [field.path for field in walk(schema)]
    nested = [path for path, _ in schemas(schema) if path]
    words: list[str] = []
    plain: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for text in overrides:
        if "=" not in text and not text.lstrip().startswith("~"):
            open_fields = [name for name in required(schema) if not any(t.startswith(f"{name}=") for t in overrides)]
            raise _no_setting(text, [*settings, *groups], open_fields)
        override = _parse(text)
        key = str(override.key_or_group)
        if key in seen:
            raise ConfigError(key, _value(override), f"is set twice, first by {seen[key]!r}", "keep one of the two")
        seen[key] = text
        if key in groups:
            words.append(_group_word(folder, key, override, text))
            groups[key] = str(_value(override))
        elif key in settings and (folder / key).is_dir():
            plain[key] = _value(override)
        elif key in settings or key in nested or (STAGES in settings and key.startswith(f"{STAGES}.")):
            # Forced, because a field that keeps its dataclass default need not stand in the YAML.
            words.append("++" + text.lstrip().lstrip("+"))
        else:
            known = [*settings, *nested, *groups]
            raise ConfigError(key, _value(override), "there is no such setting", _suggest(key, known))
    for key in seen:
        if key.startswith(f"{STAGES}."):
            chosen = groups.get(GROUP)
            of_curriculum = stage_names(folder / GROUP / f"{chosen}.yaml") if chosen else ()
            check_stage_key(key, seen[key].partition("=")[2], of_curriculum, settings)
    return words, plain, [key for key in seen if key not in groups]


def _parse(text: str) -> Override:
    key, _, value = text.partition("=")
    quoting = f"quote text with commas, brackets or spaces twice, once for the shell: '{key}=\"{value}\"'"
    if value.startswith("["):
        quoting = f"quote each text of the list, and the whole for the shell: '{key}=[\"{value.strip('[]')}\"]'"
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(key, value, f"cannot be parsed ({_first_line(error)})", quoting) from error
    key = str(override.key_or_group)
    if override.is_delete():
        raise ConfigError(key, text, "a setting cannot be removed", f"give it a value, as {key}=null")
    if override.package is not None:
        raise ConfigError(key, value, "a package cannot be named here", f"write {key}=VALUE")
    if override.is_sweep_override():
        raise ConfigError(key, value, "holds several values, and one run takes one", f"take one of them, or {quoting}")
    return override


def _no_setting(text: str, known: Sequence[str], open_fields: Sequence[str]) -> ConfigError:
    """For a word without `=`: a key cut from its value, the value of a setting that is still required, or free text."""
    if text in known:
        remedy = f"write {text}=VALUE, without spaces around the ="
    elif text in ("help", "version"):
        remedy = f"did you mean --{text}?"
    elif open_fields and text.split() == [text]:
        remedy = f"did you mean {open_fields[0]}={text}?"
    else:
        remedy = "write key=value without spaces around the =, and put quotes around a text of several words"
    return ConfigError(text, None, "is not of the form key=value", remedy)


def _group_word(folder: Path, group: str, override: Override, text: str) -> str:
    options = group_options(folder, group)
    value = _value(override)
    if isinstance(value, str) and value in options:
        return f"{group}={value}"
    if isinstance(value, dict):
        raise ConfigError(
            group, value, "is a group, and takes the name of an option", f"set its fields, as {group}.NAME=VALUE"
        )
    close = nearest(str(value), options)
    remedy = f"did you mean {group}={close}?" if close else f"write {group}=NAME with one of them"
    raise ConfigError(group, value, f"must be one of {', '.join(options)}", remedy)


def _value(override: Override) -> Any:
    """The value as plain Python, without the parser's own classes for quoted text."""
    value: Any = override.value()
    return value.text if isinstance(value, QuotedString) else value


def _suggest(key: str, known: Sequence[str]) -> str:
    close = nearest(key, known)
    return f"did you mean {close}?" if close else "add --help, which lists every setting"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
