"""Laws about the form of the code: sizes, dataclasses, docstrings, prints, names and texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.architecture.source import Module, functions

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_ARGUMENTS = 8
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def too_large(modules: dict[str, Module]) -> Iterator[str]:
    """Files, functions and argument lists above the limits."""
    for module in modules.values():
        lines = len(module.text.splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{module.name} has {lines} lines, more than {MAX_FILE_LINES}"
        for function in functions(module):
            place = f"{module.name}:{function.lineno} {function.name}"
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{place} has {length} lines, more than {MAX_FUNCTION_LINES}"
            given = function.args
            names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_ARGUMENTS:
                yield f"{place} has {count} arguments, more than {MAX_ARGUMENTS}"


def bare_dataclass_attributes(modules: dict[str, Module]) -> Iterator[str]:
    """Attributes of dataclasses without annotation: they look like fields and are none."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
                for statement in node.body:
                    if isinstance(statement, ast.Assign):
                        name = ast.unparse(statement.targets[0])
                        yield f"{module.name}:{statement.lineno} {node.name}.{name} has no annotation"


def missing_docstrings(modules: dict[str, Module]) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring."""
    for module in modules.values():
        if module.tree.body and ast.get_docstring(module.tree) is None:
            yield f"{module.name} has no docstring"
        yield from _bare(module.name, module.tree.body)


def _bare(place: str, body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None and not _is_accessor(node):
                yield f"{place}:{node.lineno} {node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                yield from _bare(f"{place}.{node.name}", node.body)


def _is_accessor(node: ast.stmt) -> bool:
    """Setters and overloads share the docstring of the thing they belong to."""
    marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", [])]
    return any(mark.endswith((".setter", "overload", "override")) for mark in marks)


def prints(modules: dict[str, Module]) -> Iterator[str]:
    """Calls of `print` and writes to standard output outside the command line."""
    for module in modules.values():
        if module.room == "cli":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write"):
                yield f"{module.name}:{node.lineno} prints; use logging, or return it to the command line"


def banned_names(modules: dict[str, Module]) -> Iterator[str]:
    """Modules whose name says nothing."""
    for module in modules.values():
        if BANNED_NAMES & set(module.name.split(".")):
            yield f"{module.name}: name the module by what it holds"


def swallowed_errors(modules: dict[str, Module]) -> Iterator[str]:
    """Handlers that catch everything, and handlers of `Exception` that do nothing."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                silent = all(isinstance(statement, ast.Pass) for statement in node.body)
                caught = ast.unparse(node.type) if node.type else ""
                if not caught or (silent and caught in ("Exception", "BaseException")):
                    yield f"{module.name}:{node.lineno} swallows errors"


# Put together here, so that this file does not hold the words it looks for.
PLACES = re.compile(r"(?<![\w.$}:/-])/(?:root|home|Users|work|mnt|scratch|private)/" + r"\w|[A-Z]:\\\\Users")
REGISTRIES = re.compile(
    "|".join(
        [
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            "--(?:extra-)?index" + "-url",
            "arti" + "factory",
            "nexus" + r"\.",
        ]
    )
)
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")


def places_and_registries(files: Iterable[Path], root: Path) -> Iterator[str]:
    """Paths of one machine, addresses of package registries and unfinished work in any text file."""
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            for what, pattern in (
                ("a machine's path", PLACES),
                ("a registry", REGISTRIES),
                ("unfinished work", UNFINISHED),
            ):
                match = pattern.search(line)
                if match:
                    yield f"{path.relative_to(root)}:{number} names {what}: {match[0]!r}"
