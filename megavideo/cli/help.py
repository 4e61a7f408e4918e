"""Help texts, made from the schema and the YAML files, so that they cannot fall behind them."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from megavideo.cli.verb import TextOption, Verb
from megavideo.config.build import MISSING, range_name, type_name
from megavideo.config.find import configs_folder, group_defaults, group_options
from megavideo.config.names import FieldInfo, schemas, walk

_WIDTH = 110
_STATUSES = (
    ("0", "done"),
    ("1", "a check that found something, or a defect of megavideo, which keeps its traceback"),
    ("2", "settings or data at fault: one message says what to change"),
    ("75", "saved and stopped as asked, or a store out of reach: the same command goes on"),
    ("76", "a rank hung: the same command goes on"),
    ("130", "interrupted"),
)
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
    lines += ["", "Exit status:", *_columns(_STATUSES)]
    return "\n".join(lines)


def verb_help(verb: Verb) -> str:
    """The text of `megavideo VERB --help`: options, groups with their files, and every setting."""
    # Imported here, because the error path and the general help need no Hydra.
    from megavideo.config.load import compose_values

    folder = configs_folder()
    groups = group_defaults(folder, verb.primary)
    values = compose_values(verb.schema, verb.primary, [])
    flags = "".join(f" [{_written(option)}]" for option in verb.options)
    plain = f" {verb.words.metavar}{' ...' if verb.words.repeats else ''}" if verb.words else ""
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
    lines += _settings(verb.schema, values)
    if verb.examples:
        lines += ["", "Examples:", *(f"  {example}" for example in verb.examples)]
    return "\n".join(lines)


def _option_rows(options: Sequence[TextOption]) -> list[tuple[str, str]]:
    return [(_written(option), option.summary + (" (may be repeated)" if option.repeats else "")) for option in options]


def _written(option: TextOption) -> str:
    return option.flag if option.metavar is None else f"{option.flag} {option.metavar}"


def _settings(schema: type[Any], values: Mapping[str, Any]) -> list[str]:
    """The settings section by section, each under what its schema says of it."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for field in walk(schema):
        rows.setdefault(field.path.rpartition(".")[0], []).append(_field_row(field, values))
    width = max(len(name) for section in rows.values() for name, _ in section)
    lines: list[str] = []
    told: dict[type[Any], str] = {}
    for section, kind in schemas(schema):
        if section in rows:
            about = f"as {told[kind]}." if kind in told else inspect.getdoc(kind) or ""
            lines += ["", *_wrapped(f"{section}: {about}" if section else about), *_columns(rows[section], width)]
            told[kind] = section
    return lines


def _wrapped(text: str) -> list[str]:
    """Paragraphs as lines of at most 110 characters."""
    paragraphs = (textwrap.fill(" ".join(part.split()), _WIDTH) for part in text.split("\n\n"))
    return "\n\n".join(paragraphs).splitlines()


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
        return "[" + ",".join(_quoted(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_quoted(item)}" for name, item in value.items()) + "}"
    return "null" if value is None else str(value)


def _quoted(value: Any) -> str:
    """An item of a list as it is to be written in one: a text with more than a word in quotes."""
    return f'"{value}"' if isinstance(value, str) and set(value) & set(" ,:[]{}") else _shown(value)


def _columns(rows: Sequence[tuple[str, str]], width: int = 0) -> list[str]:
    width = width or max((len(left) for left, _ in rows), default=0)
    return [f"  {left.ljust(width)}  {right}".rstrip() for left, right in rows]
