"""What errors tell the user to type are settings of some command, and the check catches one that is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from megavideo.config.find import group_defaults
from tests.architecture.messages import setting_names, unknown_names
from tests.architecture.source import Module
from tests.architecture.test_settings import schemas


def test_messages_name_settings_that_are_there(modules: dict[str, Module], repo_root: Path) -> None:
    typed = {"key"}  # as in key=value
    typed |= {group for primary in schemas() for group in group_defaults(repo_root / "configs", primary)}
    assert list(unknown_names(modules, setting_names(schemas().values()) | typed)) == []


@dataclass(frozen=True)
class Model:
    """A made-up section."""

    heads: int = 1


@dataclass(frozen=True)
class Run:
    """A made-up schema."""

    model: Model = field(default_factory=Model)
    steps: int = 1


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ('raise DataError(f"{x}: no. Remedy: lower model.heads, or give steps={n}")', []),
        ('raise DataError("Remedy: lower model.haeds")', ["model.haeds"]),
        ('raise ConfigError("steps", 1, "no", f"take step={n}")', ["step"]),
        ('def f():\n    remedy = "take head=1 or model.heads=2"', ["head"]),
        (
            'def f():\n    """Names model.depth and step=3 in passing."""\n    return "x=1", "model.json", "model.f()"',
            [],
        ),
        ('LATER = "add model.depth=null"', ["model.depth"]),
    ],
)
def test_a_name_that_is_no_setting_is_caught(
    code: str, named: list[str], tree: Callable[..., dict[str, Module]]
) -> None:
    faults = list(unknown_names(tree({"train/a.py": code}), setting_names([Run])))
    assert [fault.split(": ")[1].split(" ")[0] for fault in faults] == named
