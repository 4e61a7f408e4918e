"""Python sources as parsed modules, and the imports among them. Nothing is run, so that a broken tree can be read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "megavideo"


@dataclass(frozen=True)
class Module:
    """One file: its dotted name, whether it is a package's `__init__`, its text and its syntax tree."""

    name: str
    path: Path
    is_package: bool
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """Second part of the dotted name: `config`, `errors`, ...; empty for the package itself."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


@dataclass(frozen=True)
class Import:
    """One imported name with its line; `typing_only` where it stands under `if TYPE_CHECKING`."""

    target: str
    line: int
    typing_only: bool


def read_modules(root: Path, package: str = PACKAGE) -> dict[str, Module]:
    """Every module of `root/package`, by dotted name."""
    modules: dict[str, Module] = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, path, is_package, text, ast.parse(text, filename=str(path)))
    return modules


def imports_of(module: Module) -> Iterator[Import]:
    """Every import of a module, at its top, inside functions and for type checkers alike.

    `from a import b` gives `a.b`, whatever b is: `resolve` cuts it back to a module that exists.
    """
    typing_nodes = {
        id(node)
        for branch in ast.walk(module.tree)
        if isinstance(branch, ast.If) and _is_type_checking(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(module.tree):
        typing_only = id(node) in typing_nodes
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}" if base else alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from _by_name(node, typing_only)


def resolve(target: str, modules: dict[str, Module]) -> str | None:
    """The longest leading part of `target` that is a module of the tree, or None for anything else."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in modules:
            return name
    return None


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module, nested ones too."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def _is_type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _called(node: ast.Call) -> str:
    return str(getattr(node.func, "id", getattr(node.func, "attr", "")))


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    keep = len(parts) - node.level + (1 if module.is_package else 0)
    return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def _by_name(node: ast.Call, typing_only: bool) -> Iterator[Import]:
    """`import_module("a.b")`, and the fixed beginning of `import_module(f"a.b.{name}")`."""
    argument = node.args[0] if node.args else None
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]  # type: ignore[assignment]
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield Import(argument.value.rstrip("."), node.lineno, typing_only)
