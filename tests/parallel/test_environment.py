"""Variables of a GPU process: which, for which chip, ahead of every CUDA call, and never over what the user has set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megavideo.config.layout import parse_layout
from megavideo.parallel.processes import distributed
from megavideo.parallel.processes.distributed import machine_devices, process_group
from megavideo.parallel.processes.environment import chip_generation, gpu_environment

TEN_MINUTES = timedelta(minutes=10)
HOPPER, BLACKWELL = 9, 10
QUEUES, ALLOCATOR = "CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF"


def wanted(environment: Mapping[str, str], chip: int | None = HOPPER, communicate: bool = True) -> dict[str, str]:
    return gpu_environment(environment, chip, communicate, TEN_MINUTES)


@pytest.mark.parametrize(
    ("chip", "communicate", "queues"),
    [(8, True, "1"), (HOPPER, True, "1"), (BLACKWELL, True, "32"), (12, True, "32"),
     (HOPPER, False, None), (BLACKWELL, False, None), (None, True, None)],
)  # fmt: skip
def test_queues_follow_from_chip_and_layout(chip: int | None, communicate: bool, queues: str | None) -> None:
    assert wanted({}, chip, communicate).get(QUEUES) == queues


def test_what_is_set_whatever_the_chip() -> None:
    assert wanted({}, None) == {
        ALLOCATOR: "expandable_segments:True",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "480",
    }
    short = gpu_environment({}, None, False, timedelta(seconds=90))
    assert short["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "90"


@pytest.mark.parametrize(
    ("name", "own"),
    [(QUEUES, QUEUES), (ALLOCATOR, ALLOCATOR), ("PYTORCH_CUDA_ALLOC_CONF", ALLOCATOR),
     ("NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING"), ("TORCH_NCCL_ENABLE_MONITORING",) * 2],
)  # fmt: skip
def test_what_the_user_has_set_stays_under_either_name(name: str, own: str) -> None:
    assert own in wanted({}) and own not in wanted({name: "0"})
    assert name not in wanted({name: "0"})


class _Machine:
    """A machine with GPUs of a chip, as torch tells of it; notes calls with what the environment held at the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chip: int) -> None:
        self.calls: list[tuple[str, str | None, str | None]] = []
        # a group of one over gloo stands in for NCCL's
        made = dist.init_process_group
        monkeypatch.setattr(distributed, "chip_generation", lambda: chip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self._note("is_available") or True)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: self._note(f"set_device {device}"))
        monkeypatch.setattr(
            dist, "init_process_group", lambda backend, **options: self._note(backend) or made("gloo", **options)
        )
        monkeypatch.setattr(distributed, "call_all_ranks", lambda device: self._note(f"call_all_ranks {device}"))

    def _note(self, call: str) -> None:
        self.calls.append((call, os.environ.get(QUEUES), os.environ.get(ALLOCATOR)))


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (QUEUES, ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that it is put back at the end, whatever is set in between
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("chip", "layouts", "queues"),
    [(HOPPER, ["zero3", "tp2-sp-zero1"], "1"), (HOPPER, ["cp2-ring"], "1"), (HOPPER, ["pp2-zero1", "zero3"], None),
     (BLACKWELL, ["tp2"], "32"), (HOPPER, [], None)],
)  # fmt: skip
def test_variables_are_there_before_cuda_is_asked_anything(
    monkeypatch: pytest.MonkeyPatch, chip: int, layouts: list[str], queues: str | None
) -> None:
    machine = _Machine(monkeypatch, chip)
    with process_group(layouts=[parse_layout(layout) for layout in layouts]) as launch:
        assert launch.device == torch.device("cuda", 0)
    names = ["is_available", "set_device cuda:0", "nccl", "call_all_ranks cuda:0"]
    assert machine.calls == [(name, queues, "expandable_segments:True") for name in names]


@pytest.mark.usefixtures("clean")
def test_the_first_call_of_the_default_group_is_one_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    made = dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda *given, **options: seen.append("all_reduce") or made(*given))
    with process_group() as launch:
        assert seen == ["all_reduce"] and launch.device.type == "cpu"


@pytest.mark.skipif(not hasattr(torch._C, "_cuda_memorySnapshot"), reason="torch was built without CUDA")
def test_torch_takes_the_allocators_setting_after_its_import(repo_root: Path) -> None:
    program = (
        "import torch\n"
        "from megavideo.parallel.processes.distributed import process_group\n"
        "with process_group():\n"
        "    print(torch._C._cuda_memorySnapshot(None)['allocator_settings']['expandable_segments'])\n"
    )
    told = {}
    for given in ("", "expandable_segments:False"):
        variables = {name: value for name, value in os.environ.items() if name != ALLOCATOR}
        variables |= {"PYTORCH_CUDA_ALLOC_CONF": given} if given else {}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=repo_root, env=variables, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        told[given] = done.stdout.strip() or done.stderr
    assert told == {"": "True", "expandable_segments:False": "False"}


def test_devices_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine_devices() == [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert machine_devices() == [torch.device("cpu")]


_LIBRARY = """
static int device;
int nvmlInit_v2(void) { return %(init)s; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) { *gpu = &device; return index != 0; }
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    if (gpu != &device) return 2;
    *major = %(major)s; *minor = 3; return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("init", "major", "found"), [(0, 9, 9), (0, 10, 10), (9, 9, None)])
def test_the_chip_is_asked_of_the_drivers_library(tmp_path: Path, init: int, major: int, found: int | None) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(_LIBRARY % {"init": init, "major": major})
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert chip_generation(str(library)) == found


def test_without_the_drivers_library_the_chip_is_not_known() -> None:
    assert chip_generation("libnone.so.1") is None
