"""Help texts, made from the schema and the YAML files, so that they cannot fall behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from megavideo.cli.verb import TextOption, Verb
from megavideo.config.build import MISSING, range_name, type_name
from megavideo.config.find import configs_folder, group_defaults, group_options
from megavideo.config.names import FieldInfo, walk

COMMON = (
    ("-h, --help", "show this text"),
    ("--json", "print the report as one JSON object on standard output"),
    ("-v, --verbose", "log more"),
)


def general_help(summaries: Mapping[str, str]) -> str:
    """The text of `megavideo --help`; `summaries` maps each verb to its line."""
    lines = ["usage: megavideo VERB key=value ... [--help] [--json] [-v]", "", "Verbs:"]
    lines += _columns(list(summaries.items()))
    lines += ["", "Settings are overrides in Hydra's grammar, as model=small train.steps=100 optim.betas=[0.9,0.95]."]
    lines += ["`megavideo VERB --help` lists every setting of a verb. `megavideo --version` prints the version."]
    return "\n".join(lines)


def verb_help(verb: Verb) -> str:
    """The text of `megavideo VERB --help`: options, groups with their files, and every setting."""
    # Imported here, because the error path and the general help need no Hydra.
    from megavideo.config.load import compose_values

    folder = configs_folder()
    groups = group_defaults(folder, verb.primary)
    values = compose_values(verb.schema, verb.primary, [])
    flags = "".join(f" [{option.flag} {option.metavar}]" for option in verb.options)
    plain = f" {verb.words.metavar} ..." if verb.words else ""
    lines = [
        f"usage: megavideo {verb.name}{plain} key=value ...{flags} [--help] [--json] [-v]",
        "",
        verb.summary,
        "",
        "Options:",
    ]
    words = [(verb.words.metavar, verb.words.summary)] if verb.words else []
    lines += _columns([*words, *_option_rows(verb.options), *COMMON])
    if groups:
        rows = [
            (group, f"{' | '.join(group_options(folder, group))}  (default {chosen})")
            for group, chosen in groups.items()
        ]
        lines += ["", "Groups, each a choice of a file (as model=small):", *_columns(rows)]
    lines += ["", "Settings (type, range, value when nothing is said):"]
    lines += _columns([_field_row(field, values) for field in walk(verb.schema)])
    if verb.examples:
        lines += ["", "Examples:", *(f"  {example}" for example in verb.examples)]
    return "\n".join(lines)


def _option_rows(options: Sequence[TextOption]) -> list[tuple[str, str]]:
    return [
        (f"{option.flag} {option.metavar}", option.summary + (" (may be repeated)" if option.repeats else ""))
        for option in options
    ]


def _field_row(field: FieldInfo, values: Mapping[str, Any]) -> tuple[str, str]:
    parts = [type_name(field.hint), range_name(field.metadata)]
    value: Any = values
    for name in field.path.split("."):
        value = value.get(name, dataclasses.MISSING) if isinstance(value, Mapping) else dataclasses.MISSING
    if value is dataclasses.MISSING:
        value = field.default
    required = value is dataclasses.MISSING or value == MISSING
    parts.append("required" if required else f"= {_shown(value)}")
    return field.path, "  ".join(part for part in parts if part)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_shown(item) for item in value) + "]"
    return "null" if value is None else str(value)


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(left) for left, _ in rows), default=0)
    return [f"  {left.ljust(width)}  {right}".rstrip() for left, right in rows]
