"""Which settings the code reads: attributes followed from annotated parameters and fields down to the schema.

`steps` is a setting of training and of sampling; a read of one is no read of the other. So each function is walked with
the schema types of its parameters, of `self.NAME` and of local names assigned from those.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_type_hints

from tests.architecture.source import Module

Reads = set[tuple[str, str]]
Types = dict[str, str]


def nested_schemas(schemas: Iterable[type[Any]]) -> dict[str, type[Any]]:
    """Schema classes by name, with those nested in them."""
    found: dict[str, type[Any]] = {}
    todo = list(schemas)
    while todo:
        schema = todo.pop()
        if schema.__name__ not in found:
            found[schema.__name__] = schema
            todo += [hint for hint in get_type_hints(schema).values() if dataclasses.is_dataclass(hint)]
    return found


def unread_fields(schemas: Iterable[type[Any]], modules: dict[str, Module]) -> Iterator[str]:
    """Settings that no code outside `config/` reads: they could be set without any effect.

    A field whose name belongs to one schema only may also be read where the type cannot be followed.
    """
    known = nested_schemas(schemas)
    owners: dict[str, list[str]] = {}
    for name, schema in known.items():
        for field in dataclasses.fields(schema):
            owners.setdefault(field.name, []).append(name)
    code = [module for module in modules.values() if module.room != "config"]
    typed: Reads = set()
    for module in code:
        typed |= _typed_reads(module, known)
    loose = {name for module in code for name in _names_read(module)}
    for name, schema in known.items():
        for field in dataclasses.fields(schema):
            followed = (name, field.name) in typed
            alone = len(owners[field.name]) == 1 and field.name in loose
            if not followed and not alone:
                yield f"{name}.{field.name} is read nowhere"


def _names_read(module: Module) -> Iterator[str]:
    """Attributes read anywhere, and the words of a module that reads fields named by text, as with `getattr`."""
    by_text = any(word in module.text for word in ("getattr(", "dataclasses.fields(", "asdict(", "astuple("))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif by_text and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _typed_reads(module: Module, known: dict[str, type[Any]]) -> Reads:
    reads: Reads = set()
    _Walker(known, reads).visit(module.tree)
    return reads


class _Walker(ast.NodeVisitor):
    """Walks one module with the schema types of the names in sight; `self.x` is kept as the name `self.x`."""

    def __init__(self, known: dict[str, type[Any]], reads: Reads) -> None:
        self.known = known
        self.reads = reads
        self.scope: Types = {}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer = dict(self.scope)
        for statement in ast.walk(node):
            if isinstance(statement, ast.AnnAssign):
                target = ast.unparse(statement.target)
                self._bind(target if target.startswith("self.") else f"self.{target}", statement.annotation)
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                self._bind_arguments(method)
                for inner in ast.walk(method):
                    if isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]).startswith("self."):
                        self._assign(ast.unparse(inner.targets[0]), inner.value)
        self.generic_visit(node)
        self.scope = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.scope)
        self._bind_arguments(node)
        for statement in node.body:
            self.visit(statement)
        self.scope = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._assign(ast.unparse(one), other)
        else:
            self._assign(ast.unparse(target), value)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self._type_of(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """`getattr(cfg, "name")`, and `asdict(cfg)`, which reads all."""
        called = ast.unparse(node.func).rsplit(".", 1)[-1]
        schema = self._type_of(node.args[0]) if node.args else None
        if schema and called in ("asdict", "astuple", "fields"):
            self.reads |= {(schema, field.name) for field in dataclasses.fields(self.known[schema])}
        if schema and called == "getattr" and isinstance(node.args[1], ast.Constant):
            self.reads.add((schema, str(node.args[1].value)))
        self.generic_visit(node)

    def _bind_arguments(self, node: ast.FunctionDef) -> None:
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self.scope.pop(argument.arg, None)
            self._bind(argument.arg, argument.annotation)

    def _bind(self, name: str, annotation: ast.expr | None) -> None:
        words = re.findall(r"\w+", ast.unparse(annotation)) if annotation else []
        for word in words:
            if word in self.known:
                self.scope[name] = word

    def _assign(self, name: str, value: ast.expr) -> None:
        schema = self._type_of(value)
        if schema:
            self.scope[name] = schema
        elif isinstance(value, ast.Call) and value.args:
            # `load(TrainRun, ...)` and `from_yaml(TrainRun, ...)` return what they are given.
            first = ast.unparse(value.args[0]).rsplit(".", 1)[-1]
            self.scope.update({name: first} if first in self.known else {})

    def _type_of(self, node: ast.expr) -> str | None:
        text = ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""
        if text in self.scope:
            return self.scope[text]
        if not isinstance(node, ast.Attribute):
            return None
        owner = self._type_of(node.value)
        if owner is None:
            return None
        self.reads.add((owner, node.attr))
        hint = get_type_hints(self.known[owner]).get(node.attr)
        return hint.__name__ if hint is not None and dataclasses.is_dataclass(hint) else None
