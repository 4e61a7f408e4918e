"""The laws about imports hold, and each check catches a tree that breaks its law."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest

from tests.architecture.layers import (
    ALLOWED,
    TORCH_BOUND,
    TORCH_FREE,
    cycles,
    engines_outside_parallel,
    inner_room_of,
    parallel_state_users,
    room_of,
    torch_in_free_rooms,
    upward_imports,
)
from tests.architecture.source import Module

Tree = Callable[[dict[str, str]], dict[str, Module]]

BLOCKER = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
        return None

sys.meta_path.insert(0, Blocker())
for name in {names!r}:
    importlib.import_module(name)
"""


def import_without_torch(names: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    code = BLOCKER.format(blocked=sorted(TORCH_BOUND), names=names)
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)


def test_table_itself_has_no_cycle() -> None:
    rank: dict[str, int] = {}
    while len(rank) < len(ALLOWED):
        free = [room for room, below in ALLOWED.items() if room not in rank and below <= rank.keys()]
        assert free, "the import table is circular"
        rank.update(dict.fromkeys(free, len(rank)))


def test_rooms_import_downward(modules: dict[str, Module]) -> None:
    assert list(upward_imports(modules)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import megavideo.train.loop",
        "from megavideo.train import loop",
        "from megavideo.train.loop import Loop",
        "from ..train.loop import Loop",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from megavideo.train.loop import Loop",
        "def f():\n    from megavideo.train import loop",
        "import importlib\ndef f():\n    return importlib.import_module('megavideo.train.loop')",
        "from importlib import import_module\ndef f(n):\n    return import_module(f'megavideo.train.{n}')",
    ],
)
def test_upward_import_is_caught(tree: Tree, text: str) -> None:
    bad = tree(
        {"__init__.py": "", "train/__init__.py": "", "train/loop.py": "", "data/__init__.py": "", "data/a.py": text}
    )
    assert any("'data' may not import 'train'" in fault for fault in upward_imports(bad))


def test_siblings_unknown_rooms_and_missing_modules_are_caught(tree: Tree) -> None:
    bad = tree(
        {
            "model/a.py": "import megavideo.data.b",
            "data/b.py": "",
            "attic/c.py": "",
            "generate/d.py": "import megavideo.evaluation.e",
            "evaluation/e.py": "import megavideo_elsewhere\nfrom megavideo import gone",
        }
    )
    faults = "\n".join(upward_imports(bad))
    # Evaluation and generation are siblings, as model and data are.
    for part in ("'model' may not import 'data'", "'attic' is not in", "'generate' may not import 'evaluation'"):
        assert part in faults
    assert "megavideo.gone, which is not there" in faults


def test_no_cycles(modules: dict[str, Module]) -> None:
    assert cycles(modules, room_of) == []
    assert cycles(modules, inner_room_of) == []
    assert cycles(modules, attrgetter("name")) == []


def test_cycles_are_caught(tree: Tree) -> None:
    bad = tree(
        {
            "data/a.py": "def f():\n    import megavideo.data.b",
            "data/b.py": "import megavideo.data.c",
            "data/c.py": "import megavideo.data.a\nimport megavideo.model.d",
            "model/d.py": "import megavideo.data.a",
        }
    )
    assert cycles(bad, room_of) == [["data", "model"]]
    assert cycles(bad, attrgetter("name")) == [
        ["megavideo.data.a", "megavideo.data.b", "megavideo.data.c", "megavideo.model.d"]
    ]


def test_cycles_of_inner_rooms_are_caught(tree: Tree) -> None:
    bad = tree(
        {
            "data/plan/a.py": "import megavideo.data.table.c",
            "data/plan/b.py": "",
            "data/table/c.py": "",
            "data/table/d.py": "import megavideo.data.plan.b",
        }
    )
    assert cycles(bad, attrgetter("name")) == []
    assert cycles(bad, inner_room_of) == [["megavideo.data.plan", "megavideo.data.table"]]


def test_torch_free_rooms_name_no_torch(modules: dict[str, Module]) -> None:
    assert list(torch_in_free_rooms(modules)) == []


def test_torch_in_torch_free_room_is_caught(tree: Tree) -> None:
    bad = tree(
        {
            "planning/a.py": "def f():\n    import torch.nn",
            "config/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        }
    )
    assert list(torch_in_free_rooms(bad)) == ["megavideo.planning.a:2 imports torch.nn in a torch-free room"]


def test_torch_free_rooms_import_with_torch_blocked(modules: dict[str, Module], repo_root: Path) -> None:
    names = [module.name for module in modules.values() if module.room in TORCH_FREE]
    done = import_without_torch(names, repo_root)
    assert done.returncode == 0, done.stderr


def test_blocked_torch_is_caught(tree: Tree, tmp_path: Path) -> None:
    # Hidden from the syntax tree, so that only the blocked import can show it.
    tree({"__init__.py": "", "config/__init__.py": "", "config/a.py": "__builtins__['__imp' + 'ort__']('torch')"})
    done = import_without_torch(["megavideo.config.a"], tmp_path)
    assert done.returncode != 0
    assert "blocked: torch" in done.stderr


def test_only_parallel_imports_engines(modules: dict[str, Module]) -> None:
    assert list(engines_outside_parallel(modules)) == []
    assert len(parallel_state_users(modules)) <= 1


def test_engines_elsewhere_are_caught(tree: Tree) -> None:
    bad = tree(
        {
            "train/a.py": "def f():\n    import deepspeed",
            "parallel/b.py": "from megatron.core import parallel_state",
            "parallel/c.py": "import megatron.core.parallel_state as state",
        }
    )
    assert list(engines_outside_parallel(bad)) == ["megavideo.train.a:2 imports deepspeed outside parallel/"]
    assert parallel_state_users(bad) == ["megavideo.parallel.b", "megavideo.parallel.c"]
