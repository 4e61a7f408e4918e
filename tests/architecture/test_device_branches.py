"""Each decision by the kind of device is named with what covers it, and the check finds them in every form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture.devices import COVERED, device_decisions, missing_covers, stale, uncovered
from tests.architecture.source import Module

Tree = Callable[[dict[str, str]], dict[str, Module]]


def test_every_device_branch_is_covered(modules: dict[str, Module]) -> None:
    assert list(uncovered(modules, COVERED)) == []


def test_no_row_is_left_of_a_branch_that_is_gone(modules: dict[str, Module]) -> None:
    assert list(stale(modules, COVERED)) == []


def test_what_covers_a_branch_is_there(repo_root: Path) -> None:
    assert list(missing_covers(repo_root, COVERED)) == []


@pytest.mark.parametrize(
    "text",
    [
        "if device.type == 'cuda': x = 1",
        "x = 1 if self._device.type != 'cpu' else 2",
        "on_gpu = tensor.device.type in ('cuda', 'xpu')",
        "x = {'cuda': 1, 'cpu': 2}[launch.device.type]",
        "import torch\nx = torch.device('cuda:0').type",
        "gpus = [d for d in found if d.type == 'cuda']",
        "if torch.device('cpu') == place: x = 1",
        "x = tensor.is_cuda",
        "if not any(value.is_cpu for value in values): x = 1",
        "import torch\nx = torch.cuda.is_available()",
        "from torch import cuda\nx = cuda.device_count() or 1",
        "from torch.cuda import is_available",
        "import torch\nx = torch.accelerator.is_available()",
        "import torch\nx = torch.cuda.get_device_capability()[0] >= 10",
        "import torch\nx = torch.version.cuda is None",
        "import torch\nx = torch.backends.cuda.flash_sdp_enabled()",
        "import torch\nx = torch.distributed.is_nccl_available()",
        "if str(device).startswith('cuda'): x = 1",
        "if 'cuda' == name.partition(':')[0]: x = 1",
        "match kind:\n    case 'cuda':\n        x = 1",
    ],
)
def test_every_form_of_a_branch_is_found(tree: Tree, text: str) -> None:
    lines = "\n".join(f"        {line}" for line in text.splitlines())
    planted = tree({"data/a.py": f"class A:\n    def f(self):\n{lines}\n"})
    assert list(uncovered(planted, {})) == [
        f"megavideo.data.a.A.f (line {number}) hangs on the kind of device: cover it, and name by what in COVERED"
        for _, number in device_decisions(planted)
    ]
    assert [name for name, _ in device_decisions(planted)] == ["megavideo.data.a.A.f"]
    assert list(uncovered(planted, {"megavideo.data.a.A.f": ""})) == []


@pytest.mark.parametrize(
    "text",
    [
        "x = torch.zeros(3, device=device)",
        "x = torch.device('cuda', 0)",
        "x = tensor.to('cpu')",
        "x = [field for field in fields if field.type == 'int']",
        "x = event.type",
        "torch.cuda.synchronize(device)",
        "x = name == 'cudagraphs'",
        "x = torch.cuda.current_stream(device)",
    ],
)
def test_what_goes_for_all_devices_is_legal(tree: Tree, text: str) -> None:
    assert list(device_decisions(tree({"data/a.py": text}))) == []


def test_a_branch_of_the_module_itself_is_found_once(tree: Tree) -> None:
    planted = tree({"data/a.py": "import torch\nGPU = torch.cuda.is_available()\nCPU = not torch.cuda.is_available()"})
    assert list(device_decisions(planted)) == [("megavideo.data.a", 2)]


def test_a_row_without_branch_and_covers_that_are_not_there_are_caught(tree: Tree, tmp_path: Path) -> None:
    planted = tree({"data/a.py": "def f(device):\n    return device"})
    assert list(stale(planted, {"megavideo.data.a.f": ""})) == [
        "megavideo.data.a.f is in COVERED and hangs on no device: drop the row"
    ]
    for file in ("tests/data/test_a.py", "tools/gpu_check/main.py"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("def test_f() -> None: ...\ndef check() -> None: ...\n")
    table = {
        "good": "tests/data/test_a.py::test_f",
        "by_hand": "tools/gpu_check/main.py::check",
        "renamed": "tests/data/test_a.py::test_g",
        "moved": "tests/data/test_b.py::test_f",
        "no_test": "tests/data/test_a.py::check",
        "no_check": "tools/gpu_check/main.py::gone",
        "elsewhere": "megavideo/data/a.py::test_f",
    }
    assert list(missing_covers(tmp_path, table)) == [
        "renamed: tests/data/test_a.py::test_g is not there",
        "moved: tests/data/test_b.py::test_f is not there",
        "no_test: tests/data/test_a.py::check is neither tests/FILE.py::test_NAME nor tools/gpu_check/FILE.py::NAME",
        "no_check: tools/gpu_check/main.py::gone is not there",
        "elsewhere: megavideo/data/a.py::test_f is neither tests/FILE.py::test_NAME nor tools/gpu_check/FILE.py::NAME",
    ]
