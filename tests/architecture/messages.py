"""The law about messages: a setting that an error names is a setting, so that its remedy can be typed as it stands."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_type_hints

from tests.architecture.source import Module

# `section.name`, not a file, a path, an address or a call
_DOTTED = re.compile(r"(?<![\w./:{}\[*-])([a-z_]+(?:\.[a-z_][a-z_0-9]*)+)(?![\w(])")
_GIVEN = re.compile(r"(?<![\w./:{}\[(-])([a-z_]+(?:\.[a-z_0-9]+)*)=(?!=)")
_FILES = (".html", ".j2", ".json", ".jsonl", ".mp4", ".png", ".sbatch", ".sh", ".txt", ".yaml")
_SAID = ("rule", "remedy")  # variables that hold a part of a message


def setting_names(schemas: Iterable[type[Any]]) -> set[str]:
    """Every setting of the schemas and every section, as they are typed."""
    return {name for schema in schemas for name in _names(schema, "")}


def unknown_names(modules: Mapping[str, Module], known: set[str]) -> Iterator[str]:
    """What texts name as `section.name`, and messages of errors as `name=value`, and is not `known`."""
    sections = {name.split(".")[0] for name in known if "." in name}
    for module in modules.values():
        said = {id(text) for text in _messages(module.tree)}
        for text in _texts(module.tree):
            dotted = [name for name in _DOTTED.findall(text.value) if name.split(".")[0] in sections]
            given = _GIVEN.findall(text.value) if id(text) in said else []
            for name in dict.fromkeys((*dotted, *given)):
                if name not in known and not name.endswith(_FILES):
                    yield f"{module.path}:{text.lineno}: {name} is no setting"


def _names(schema: type[Any], path: str) -> Iterator[str]:
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield f"{path}{field.name}"
        if dataclasses.is_dataclass(hint := hints[field.name]):
            yield from _names(hint, f"{path}{field.name}.")  # type: ignore[arg-type]


def _texts(tree: ast.AST) -> Iterator[Any]:
    """Constants of text but for docstrings, in f-strings too."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node


def _messages(tree: ast.AST) -> Iterator[Any]:
    """Those that are said by an error: its arguments, and what is assigned to `rule` or `remedy`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and str(getattr(node.func, "id", "")).endswith("Error"):
            yield from _texts(node)
        elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") in _SAID for target in node.targets):
            yield from _texts(node.value)
