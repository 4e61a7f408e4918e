"""A curriculum: stages of a run, each the run's settings with some of its own.

A stage says only what is its own. What the command line says beats every stage; `stages.NAME.SETTING=` beats one.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megavideo.border.files import read_file
from megavideo.border.refused import Refused
from megavideo.border.yaml_text import parse_yaml
from megavideo.config.build import build
from megavideo.config.names import nearest
from megavideo.config.rules import check
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError

GROUP = "curriculum"
STAGES = "stages"
# what a stage may say besides settings: a word on its aim, and its global batch in tokens
ABOUT, BATCH = "about", "batch_tokens"
_OF_THE_WHOLE = ("name", "output", "model", "stage", STAGES, "init_from", "init_expert", "lora")


@dataclass(frozen=True)
class Stage:
    """One stage with all its settings. A run without a curriculum is one stage of number 0 and no name."""

    config: TrainRun
    name: str = ""
    number: int = 0
    of: int = 1


def stages_of(config: TrainRun) -> tuple[Stage, ...]:
    """The stages of a run, in order; each is held to the rules.

    Raises ConfigError naming the stage. With `stage` set it is that one alone.
    """
    if not config.stages:
        return (Stage(config),)
    names = list(config.stages)
    chosen = names if config.stage is None else [config.stage]
    return tuple(_stage(config, name, names) for name in chosen)


def stage_names(file: Path) -> tuple[str, ...]:
    """Names of the stages in a YAML file of the group `curriculum`."""
    try:
        content = parse_yaml(read_file(file))
        return tuple(str(name) for name in content[STAGES])
    except (OSError, Refused, TypeError, KeyError) as error:
        raise ConfigError(GROUP, str(file), f"cannot be read: {error}", f"give it a mapping `{STAGES}`") from error


def check_stage_key(key: str, value: Any, names: Iterable[str], settings: Iterable[str]) -> None:
    """Raise ConfigError for an override `stages.NAME.SETTING` of a stage or a setting that is not there."""
    _, name, setting = (*key.split(".", 2), "")[:3]
    names = tuple(names)
    if name not in names:
        close = nearest(name, names)
        legal = f"take one of {', '.join(names)}" if names else "add curriculum=sora, or another"
        raise ConfigError(key, value, "there is no such stage", f"did you mean {STAGES}.{close}?" if close else legal)
    known = [path for path in (*settings, ABOUT, BATCH) if path.split(".")[0] not in _OF_THE_WHOLE]
    if setting not in known:
        close = nearest(setting, known)
        remedy = f"did you mean {STAGES}.{name}.{close}?" if close else f"write {STAGES}.{name}.SETTING=VALUE"
        raise ConfigError(key, value, "a stage has no such setting", remedy)


def with_stages(values: dict[str, Any], said: Iterable[str]) -> dict[str, Any]:
    """Composed values in which each stage has all of its settings, and the top ones are those of the chosen stage.

    `said` are the dotted settings of the command line. Raises ConfigError for a stage that is not there, and for one
    that is no mapping of settings.
    """
    stages: Mapping[str, Any] = _mapping(STAGES, values.get(STAGES) or {})
    number = values.get("stage")
    if not stages:
        if number is not None:
            raise ConfigError("stage", number, "has no effect without a curriculum", "add curriculum=sora, or drop it")
        return values
    said = [key for key in said if key != "stage"]
    resolved = {
        str(name): _resolved(values, str(name), _mapping(f"{STAGES}.{name}", own or {}), said)
        for name, own in stages.items()
    }
    chosen = None if number is None else _chosen(number, list(resolved))
    return resolved[chosen or next(iter(resolved))] | {STAGES: resolved, "stage": chosen}


def _mapping(field: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            field, value, "is a group of settings, not one value", f"set its fields, as {field}.NAME=VALUE"
        )
    return value


def _chosen(given: Any, names: list[str]) -> str:
    text = str(given)
    if text in names:
        return text
    if text.isdigit() and 1 <= int(text) <= len(names):
        return names[int(text) - 1]
    raise ConfigError("stage", given, f"must be 1 to {len(names)} or one of {', '.join(names)}", "take one of them")


def _resolved(values: Mapping[str, Any], name: str, own: Mapping[str, Any], said: Collection[str]) -> dict[str, Any]:
    for key in own:
        if key in _OF_THE_WHOLE:
            rule = "belongs to the whole run and cannot differ between stages"
            raise ConfigError(f"{STAGES}.{name}.{key}", own[key], rule, f"set {key}= for the run")
    settings = {key: value for key, value in own.items() if key not in (ABOUT, BATCH)}
    base = {key: value for key, value in values.items() if key not in (STAGES, "stage")}
    merged = _merged(base, settings, f"{STAGES}.{name}")
    for key in said:
        if not key.startswith(f"{STAGES}.") and f"{STAGES}.{name}.{key}" not in said:
            _put(merged, key.split("."), values)
    tokens = merged["data"]["tokens_per_pack"]
    countable = isinstance(tokens, int) and tokens > 0  # the builder says so where it is not
    if own.get(BATCH) is not None and "train.packs_per_step" not in said and countable:
        merged["train"]["packs_per_step"] = _packs(name, own[BATCH], tokens)
    return merged


def _packs(name: str, batch_tokens: Any, tokens_per_pack: int) -> int:
    field = f"{STAGES}.{name}.{BATCH}"
    if not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ConfigError(field, batch_tokens, "must be a whole number of tokens", f"write {field}=8388608")
    if batch_tokens % tokens_per_pack:
        near = max(1, round(batch_tokens / tokens_per_pack)) * tokens_per_pack
        rule = f"must be a whole number of packs of data.tokens_per_pack={tokens_per_pack}"
        raise ConfigError(field, batch_tokens, rule, f"take {field}={near}, or set train.packs_per_step")
    return batch_tokens // tokens_per_pack


def _merged(base: Mapping[str, Any], own: Mapping[str, Any], place: str) -> dict[str, Any]:
    merged: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in own.items():
        before = merged.get(key)
        # a mapping of sources is one value: what the stage does not name must not stay from another one
        if isinstance(before, Mapping) and key != "sources":
            merged[key] = _merged(before, _mapping(f"{place}.{key}", value), f"{place}.{key}")
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _put(target: dict[str, Any], path: list[str], source: Any) -> None:
    for name in path[:-1]:
        target = target.setdefault(name, {})
        source = source.get(name, {})
    if path[-1] in source:
        target[path[-1]] = copy.deepcopy(source[path[-1]])


def _stage(config: TrainRun, name: str, names: list[str]) -> Stage:
    try:
        built = replace(build(TrainRun, config.stages[name]), stage=name)
        check(built)
    except ConfigError as error:
        raise ConfigError(error.field, error.value, f"in stage {name}: {error.rule}", error.remedy) from error
    return Stage(built, name, names.index(name) + 1, len(names))
