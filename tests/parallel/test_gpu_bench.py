"""tools/bench/gpu.sh as far as a machine without GPU can try it: a rehearsal, one that is killed, and its pieces."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from megavideo.errors import ConfigError
from tests.parallel.bare_machine import bare_environment

TOOL = "tools/bench/gpu.sh"
PARTS = ("facts", "ceilings", "attention", "model", "diffusers", "predicted", "launches")
# what a machine without GPU cannot try
SKIPS = ("Transformer Engine runs on NVIDIA GPUs", "no NVIDIA GPU", "no memory is pinned without a GPU")
CPU_SECONDS = 60.0


@pytest.fixture(scope="module")
def rehearsal(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole rehearsal on a bare machine: what it printed and left."""
    folder = tmp_path_factory.mktemp("bench")
    environment = bare_environment(repo_root, folder / "bare")
    words = ["sh", TOOL, sys.executable, "--rehearse", "--json", str(folder / "gpu.json")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=repo_root, capture_output=True, text=True, timeout=500, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    log = folder / "bare" / "log"
    return {
        "printed": done.stdout,
        "data": json.loads((folder / "gpu.json").read_text()),
        "page": (folder / "gpu.html").read_text(),
        "asked": log.read_text() if log.exists() else "",
        "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


@pytest.mark.slow
def test_every_part_measures_and_nothing_fails(rehearsal: dict[str, Any]) -> None:
    data = rehearsal["data"]
    assert data["rehearsal"] is True
    assert [(part["name"], part["state"]) for part in data["parts"]] == [(name, "done") for name in PARTS]
    assert [row for row in data["rows"] if row["status"] == "failed"] == []
    skipped = [row["note"] for row in data["rows"] if row["status"] == "skipped"]
    assert all(any(why in note for why in SKIPS) for note in skipped), skipped
    assert {row["part"] for row in data["rows"] if row["status"] == "ok"} == set(PARTS)
    assert rehearsal["seconds"] < CPU_SECONDS


@pytest.mark.slow
def test_what_a_gpu_run_is_for_is_there(rehearsal: dict[str, Any]) -> None:
    rows = {(row["part"], row["name"]): row["values"] for row in rehearsal["data"]["rows"] if row["status"] == "ok"}
    assert {"tflops", "time_ms"} <= rows["ceilings", "fp8"].keys()
    assert rows["attention", "cpu"]["difference_from_sdpa"] < 1e-2
    assert rows["attention", "cpu, longest = the pack"]["difference_from_sdpa"] < 1e-2
    step = {"tokens_per_s", "tflops", "mfu_percent", "step_ms", "forward_ms", "backward_ms", "update_ms", "recompute"}
    assert step <= rows["model", "eager"].keys() & rows["model", "compiled"].keys()
    assert "step_ms" in rows["model", "engine of training"]
    # the same weights give the same prediction in both
    ratio = rows["diffusers", "ratio of speed, ours compiled over diffusers compiled"]
    assert ratio["difference_of_outputs"] < 2e-2
    assert {"measured_ms", "predicted_ms", "products_ms", "attention_ms"} <= rows["predicted", "eager"].keys()
    assert rows["launches", "eager"]["host_reads"] == rows["launches", "compiled"]["host_reads"] == 0
    assert rows["launches", "engine of training"]["host_reads"] > 0


@pytest.mark.slow
def test_blocks_are_recomputed_where_memory_asks_for_it(rehearsal: dict[str, Any]) -> None:
    model = [row for row in rehearsal["data"]["rows"] if row["part"] == "model" and "recompute" in row["values"]]
    assert {row["values"]["recompute"] for row in model} == {"none", "2 of 2 blocks"}


@pytest.mark.slow
def test_a_row_is_a_line_and_the_page_has_all_parts(rehearsal: dict[str, Any]) -> None:
    data, page = rehearsal["data"], rehearsal["page"]
    lines = [line for line in rehearsal["printed"].splitlines() if line[:4] in ("ok  ", "FAIL", "skip")]
    assert len(lines) == len(data["rows"])
    assert all(f"<h2>{part['title']}</h2>" in page for part in data["parts"])
    assert page.count('class="panel chart"') >= 8
    assert not any(word in page for word in ("nan", "NaN", "Infinity", "inf</", "None", "://"))


@pytest.mark.slow
def test_only_what_a_bare_machine_has_is_imported(rehearsal: dict[str, Any]) -> None:
    assert rehearsal["asked"] == ""


def test_a_missing_package_is_noted(repo_root: Path, tmp_path: Path) -> None:
    """The law of the test above can be broken: a module of the package that needs more is told of, and not imported."""
    environment = bare_environment(repo_root, tmp_path / "bare") | {"CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] += f":{repo_root}"
    done = subprocess.run(
        [sys.executable, "-c", "import megavideo.data.clips.content"], env=environment, capture_output=True, text=True
    )
    assert "No module named 'xxhash'" in done.stderr
    assert "content.py:8 imports xxhash" in (tmp_path / "bare" / "log").read_text()


def test_a_run_that_is_killed_still_tells(repo_root: Path, tmp_path: Path) -> None:
    found, page = tmp_path / "gpu.json", tmp_path / "gpu.html"
    words = [sys.executable, "tools/bench/gpu/main.py", "--rehearse", "--json", str(found)]
    environment = os.environ | {"PYTHONPATH": str(repo_root), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.Popen(words, cwd=repo_root, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not (found.exists() and any(row["part"] == "attention" for row in json.loads(found.read_text())["rows"])):
            assert run.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "the run came to nothing"
            time.sleep(0.05)
        children = psutil.Process(run.pid).children(recursive=True)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == [], "the process of a part outlived the run"
    data = json.loads(found.read_text())
    states = [part["state"] for part in data["parts"]]
    assert states[:2] == ["done", "done"], states
    assert states[-1] == "waiting", states
    assert {"facts", "ceilings", "attention"} <= {row["part"] for row in data["rows"]}
    assert "<h2>Attention kernels</h2>" in page.read_text()
    whole = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".writing-")}
    assert whole == {"gpu.html", "gpu.json"}, "only a write that the kill cut short may lie beside the two files"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_machine_without_gpu_is_refused(repo_root: Path) -> None:
    done = subprocess.run(["sh", TOOL, sys.executable], cwd=repo_root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "gpu_bench: torch sees no NVIDIA GPU" in done.stderr


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with a wheel of a package that is nowhere else."""
    import zipfile

    folder = tmp_path / "wheels"
    folder.mkdir()
    name, info = "brought_along", "brought_along-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: brought-along\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.mark.parametrize("with_site", [True, False])
def test_wheels_are_installed_where_a_folder_is_named(
    repo_root: Path, tmp_path: Path, wheels: Path, with_site: bool
) -> None:
    site = tmp_path / "site"
    environment = os.environ | {"GPU_WHEELS": str(wheels), "CUDA_VISIBLE_DEVICES": ""}
    if with_site:
        environment["GPU_SITE"] = str(site)
    words = f'root=. tool=x; set -- {sys.executable} --rehearse; . tools/gpu_python.sh; echo "$PYTHONPATH"'
    done = subprocess.run(
        ["sh", "-c", words], cwd=repo_root, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (site / "brought_along.py").exists() == with_site
    assert (str(site) in done.stdout) == with_site
    assert ("GPU_SITE=DIR" in done.stderr) != with_site


@pytest.fixture
def tools(repo_root: Path) -> Iterator[Callable[[str], Any]]:
    """Imports a module of the bench by name."""
    from importlib import import_module

    folder = str(repo_root / "tools" / "bench" / "gpu")
    sys.path.insert(0, folder)
    try:
        yield import_module
    finally:
        sys.path.remove(folder)


def test_real_sizes_are_those_of_the_models(tools: Callable[[str], Any]) -> None:
    sizes = tools("shapes").real_sizes()
    assert [content.tokens for content in (*sizes.clips, sizes.images)] == [8_192, 32_760, 75_600, 32_768]
    assert [content.pack_tokens for content in sizes.clips] == [8_192, 32_768, 75_648]
    assert (sizes.base.layers, sizes.base.head_dim, sizes.slice.layers, sizes.slice.head_dim) == (30, 128, 6, 128)
    assert all(dim % 16 == 0 for product in sizes.products for dim in product[1:]), "FP8 divides by 16"
    assert all(sizes.attention_width % width == 0 for width in sizes.head_widths)


@pytest.mark.parametrize(
    ("room", "again"), [(100, 0), (40, 0), (39, 2), (32, 2), (31, 3), (23, 3), (22, 4), (14, 4), (13, None)]
)
def test_as_few_blocks_are_recomputed_as_fit(tools: Callable[[str], Any], room: float, again: int | None) -> None:
    # of four blocks that keep 10 and have an input of 1, with one computed again at a time
    assert tools("fitting").blocks_again(4, 10, 1, room) == again


def test_counted_flops_are_those_that_torch_counts(tools: Callable[[str], Any]) -> None:
    """The products and attention of a step on meta tensors, beside torch's count of the same step on the CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    from megavideo.model.layers import LocalLayers

    shapes, step_run, roofline = tools("shapes"), tools("step_run"), tools("roofline")
    sizes = shapes.rehearsal_sizes()
    content = sizes.images

    def step(device: str) -> tuple[Callable[[], torch.Tensor], Any]:
        model = step_run.random_dit(sizes.base, 2, LocalLayers(), torch.device(device))
        pack = content.pack(sizes.base, torch.device(device), torch.bfloat16)
        return lambda: model(pack), model

    counted = roofline.count_step(step("meta")[0], content.segments)
    call, _ = step("cpu")
    with FlopCounterMode(display=False) as counter:
        call().float().square().mean().backward()
    products = sum(2 * rows * inner * out * count for (rows, inner, out), count in counted.products.items())
    assert products + counted.attention_forward + counted.attention_backward == counter.get_total_flops()
    assert counted.attention_backward == 2.5 * counted.attention_forward > 0
    assert counted.other_bytes > 0


def test_an_unknown_setting_in_a_model_file_is_refused(
    tools: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = tools("shapes")
    text = (shapes.CONFIGS / "wan_1b.yaml").read_text()
    (tmp_path / "odd.yaml").write_text(f"{text}\nwidths: 3\n")
    monkeypatch.setattr(shapes, "CONFIGS", tmp_path)
    with pytest.raises(ConfigError, match="widths"):
        shapes.model_config("odd")
