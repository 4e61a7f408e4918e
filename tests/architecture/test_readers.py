"""What comes from outside has one way in, and the check catches a tree that has another."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.architecture.readers import ALLOWED, joins_outside, readers_outside
from tests.architecture.source import Module

Tree = Callable[[dict[str, str]], dict[str, Module]]


def test_one_way_in(modules: dict[str, Module]) -> None:
    assert list(readers_outside(modules)) == []


@pytest.mark.parametrize(
    ("text", "reader"),
    [
        ("import json\njson.loads('1')", "json.loads"),
        ("from json import loads as parse\nmap(parse, [])", "json.loads"),
        ("import yaml as y\ny.safe_load('')", "yaml.safe_load"),
        ("def f():\n    from PIL import Image\n    return Image.open('x')", "PIL.Image.open"),
        ("import av\nav.open('x')", "av.open"),
        ("import numpy as np\nnp.load('x')", "numpy.load"),
        ("from safetensors import safe_open\nsafe_open('x', 'pt')", "safetensors.safe_open"),
        ("import safetensors.torch\nsafetensors.torch.load_file('x')", "safetensors.torch.load_file"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("eval('1')", "eval"),
    ],
)
def test_another_way_in_is_found(tree: Tree, text: str, reader: str) -> None:
    found = [line for line in readers_outside(tree({"data/x.py": text})) if "any more" not in line]
    assert len(found) == 1 and f"{reader} is for megavideo.border alone" in found[0]


def test_the_border_may_read(tree: Tree) -> None:
    found = readers_outside(tree({"border/x.py": "import json\njson.loads('1')"}))
    assert [line for line in found if "any more" not in line] == []


def test_rows_that_nothing_needs_are_found(tree: Tree) -> None:
    assert len(list(readers_outside(tree({"data/x.py": "1"})))) == len(ALLOWED)


def test_names_are_joined_where_they_are_known_to_stay_inside(modules: dict[str, Module]) -> None:
    assert list(joins_outside(modules)) == []


@pytest.mark.parametrize("text", ["path = root / entry.raw.basename", "path = root / row['file'] / 'x'"])
def test_a_name_that_is_joined_is_found(tree: Tree, text: str) -> None:
    found = [line for line in joins_outside(tree({"data/x.py": text})) if "any more" not in line]
    assert len(found) == 1 and "border.names.beneath" in found[0]
