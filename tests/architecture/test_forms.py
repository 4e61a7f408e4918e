"""The laws about the form of the code hold, and each check catches a tree that breaks its law."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture import forms
from tests.architecture.source import Module, read_modules

Check = Callable[[dict[str, Module]], Iterator[str]]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cfg", ".ini", ".sh", ".json", ""}
SKIPPED_FOLDERS = {"runs", "outputs", "build", "dist", "__pycache__"}


def text_files(root: Path) -> Iterator[Path]:
    """Files of the checkout that people wrote: no hidden folder but `.ci`, nothing built."""
    for path in sorted(root.iterdir()):
        if path.is_file() and path.suffix in TEXT_SUFFIXES:
            yield path
        elif (
            path.is_dir() and path.name not in SKIPPED_FOLDERS and (not path.name.startswith(".") or path.name == ".ci")
        ):
            yield from text_files(path)


@pytest.mark.parametrize(
    "check",
    [
        forms.too_large,
        forms.bare_dataclass_attributes,
        forms.missing_docstrings,
        forms.prints,
        forms.banned_names,
        forms.swallowed_errors,
    ],
)
def test_package_keeps_the_form(check: Check, modules: dict[str, Module]) -> None:
    assert list(check(modules)) == []


def test_tests_and_tools_are_small_too(repo_root: Path) -> None:
    for folder in ("tests", "tools"):
        assert list(forms.too_large(read_modules(repo_root, folder))) == []


def test_no_places_no_registries(repo_root: Path) -> None:
    assert list(forms.places_and_registries(text_files(repo_root), repo_root)) == []


LONG_FILE = "\n".join(f"a{n} = {n}" for n in range(401))
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 80
WIDE_FUNCTION = "class A:\n    def f(self, a, b, c, d, e, f, g, *, h, i): ..."
BARE_FIELD = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n    a: int\n    b = 2"
NO_DOCSTRING = "'''Module.'''\nclass A:\n    '''Class.'''\n    def f(self): ...\n    def _g(self): ..."


@pytest.mark.parametrize(
    ("check", "name", "text", "found"),
    [
        (forms.too_large, "data/a.py", LONG_FILE, "has 401 lines"),
        (forms.too_large, "data/a.py", LONG_FUNCTION, "f has 81 lines"),
        (forms.too_large, "data/a.py", WIDE_FUNCTION, "f has 9 arguments"),
        (forms.bare_dataclass_attributes, "data/a.py", BARE_FIELD, "A.b has no annotation"),
        (forms.missing_docstrings, "data/a.py", NO_DOCSTRING, "f has no docstring"),
        (forms.missing_docstrings, "data/a.py", "x = 1", "megavideo.data.a has no docstring"),
        (forms.prints, "data/a.py", "def f():\n    print(1)", "megavideo.data.a:2 prints"),
        (forms.banned_names, "data/utils.py", "", "megavideo.data.utils"),
        (forms.swallowed_errors, "data/a.py", "try:\n    f()\nexcept Exception:\n    pass", "swallows"),
        (forms.swallowed_errors, "data/a.py", "try:\n    f()\nexcept:\n    g()", "swallows"),
    ],
)
def test_bad_form_is_caught(
    check: Check, name: str, text: str, found: str, tree: Callable[..., dict[str, Module]]
) -> None:
    faults = list(check(tree({name: text})))
    assert len(faults) == 1
    assert found in faults[0]


def test_print_in_the_command_line_is_legal(tree: Callable[..., dict[str, Module]]) -> None:
    assert list(forms.prints(tree({"cli/a.py": "print(1)"}))) == []


@pytest.mark.parametrize(
    "text",
    [
        "data = '/" + "home/someone/clips'",
        "pip install --index" + "-url=x",
        "see py" + "pi.org/simple",
        "# TO" + "DO: later",
    ],
)
def test_places_and_registries_are_caught(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(text)
    assert len(list(forms.places_and_registries([path], tmp_path))) == 1


def test_legal_texts_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("s3://bucket/home/x, runs/home/x, $HOME/x, /dev/shm, ../work/x")
    assert list(forms.places_and_registries([path], tmp_path)) == []
