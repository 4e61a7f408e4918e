from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture.source import Module, read_modules


@pytest.fixture(scope="session")
def modules(repo_root: Path) -> dict[str, Module]:
    """The package as it is."""
    return read_modules(repo_root)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, str]], dict[str, Module]]:
    """Writes files of a made-up `megavideo` and parses them."""

    def write(files: dict[str, str]) -> dict[str, Module]:
        for name, text in files.items():
            path = tmp_path / "megavideo" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return read_modules(tmp_path)

    return write
