"""The law about devices: each place where the kind of device decides something is named with what covers it.

A branch for GPUs never runs where the tests run, so each is code that nobody has seen work. Here they are found by
their form, and `COVERED` says for each what shows it: a test that reaches it by a stand-in for the GPU, or a check of
tools/gpu_check for what a GPU alone can show. The best row is one that is gone: put what differs behind one protocol.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.architecture.source import Module

_KINDS = ("cuda", "cpu")
_OF_TENSORS = {"is_cuda", "is_cpu"}
_ASKED_OF_CUDA = {"is_available", "is_initialized", "device_count", "get_device_capability"}
_ANSWERS = {"is_nccl_available", "is_flash_attention_available"}

# module and function: the test, or the check of tools/gpu_check
COVERED: dict[str, str] = {
    "megavideo.device.choice.copies_for": "tests/device/test_cuda_copies.py::test_a_gpu_has_streams_for_its_copies",
    "megavideo.encoders.captioner.local.LocalModel._load_model":
        "tests/encoders/test_devices.py::test_a_captioner_keeps_float16_on_a_gpu_alone",
    "megavideo.encoders.encode.pool.choose_workers": "tests/encoders/test_devices.py::test_a_worker_for_each_gpu",
    "megavideo.encoders.encode.pool._begin_worker":
        "tests/encoders/test_devices.py::test_workers_have_gpus_of_their_own_and_share_the_cores_without",
    "megavideo.encoders.pretrained.compute_device":
        "tests/encoders/test_devices.py::test_the_gpu_where_there_is_one",
    "megavideo.encoders.scores.folder.choose_device":
        "tests/encoders/test_scores.py::test_the_device_is_the_setting_s",
    "megavideo.generate.run._sample":
        "tests/generate/test_generate.py::test_precision_is_that_of_the_device_unless_it_is_said",
    "megavideo.parallel.attention.candidates.Candidate.lacks":
        "tests/parallel/test_attention_choice.py::test_a_named_kernel_that_cannot_run_is_refused",
    "megavideo.parallel.attention.candidates.Candidate.fits":
        "tests/parallel/test_attention_choice.py::test_the_report_marks_what_auto_takes",
    "megavideo.parallel.attention.candidates.in_order":
        "tests/parallel/test_attention_choice.py::test_auto_takes_the_fastest_that_is_there",
    "megavideo.parallel.attention.fa4.warm_up":
        "tests/parallel/test_attention_parts.py::test_one_process_of_a_machine_compiles_and_the_others_find_it",
    "megavideo.parallel.attention.machine_facts.MachineFacts.of":
        "tests/parallel/test_attention_choice.py::test_facts_of_this_machine",
    "megavideo.parallel.attention.machine_facts._packages":
        "tests/parallel/test_attention_choice.py::test_packages_are_found_without_importing_them",
    "megavideo.parallel.attention.report.need_of": "tests/cli/test_doctor.py::test_kernels_are_timed_when_asked",
    "megavideo.parallel.attention.report._timed": "tests/cli/test_doctor.py::test_kernels_are_timed_when_asked",
    "megavideo.parallel.machine_report.report_machine":
        "tests/cli/test_doctor.py::test_doctor_looks_at_this_machine",
    "megavideo.parallel.engines.plain_engine.PlainEngine.__call__":
        "tests/parallel/test_engine_settings.py"
        "::test_nor_does_that_of_a_module_of_one_piece_which_computes_in_bfloat16",
    "megavideo.parallel.layers.megatron.load_megatron": "tests/parity/test_matrix.py::test_layouts_of_every_kind",
    "megavideo.parallel.machine.accelerators.detect": "tools/gpu_check/main.py::main",
    "megavideo.parallel.machine.accelerators.check_layers":
        "tests/parallel/test_accelerators.py::test_chip_without_the_format_is_refused",
    "megavideo.parallel.machine.accelerators.load_te":
        "tests/parallel/test_accelerators.py::test_te_that_is_missing_or_does_not_load_is_refused",
    "megavideo.parallel.machine.accelerators._gpus": "tools/gpu_check/main.py::main",
    "megavideo.parallel.machine.accelerators._fused_adamw": "tools/gpu_check/main.py::main",
    "megavideo.parallel.machine.accelerators._communication": "tools/gpu_check/main.py::main",
    "megavideo.parallel.machine.matmul_probe.MatmulProbe.__init__":
        "tests/parallel/test_matmul_probe.py::test_a_gpu_has_a_product_that_takes_it_milliseconds",
    "megavideo.parallel.materialise.materialise":
        "tests/parallel/test_materialise.py::test_parameters_are_this_ranks_parts_with_their_marks",
    "megavideo.parallel.materialise._Copier.__init__":
        "tests/parallel/test_materialise.py::test_pieces_that_are_cast_for_a_device_are_the_same_values",
    "megavideo.parallel.machine.timer.timer_of": "tests/parallel/test_timer.py::test_a_gpu_by_its_queue",
    "megavideo.parallel.processes.distributed.check_precision":
        "tests/parallel/test_mesh.py::test_precision_that_a_gpu_does_not_take",
    "megavideo.parallel.processes.distributed.machine_devices":
        "tests/parallel/test_environment.py::test_devices_of_a_machine",
    "megavideo.parallel.processes.distributed.own_device":
        "tests/parallel/test_environment.py::test_variables_are_there_before_cuda_is_asked_anything",
    "megavideo.parallel.processes.distributed.process_group":
        "tests/parallel/test_environment.py::test_variables_are_there_before_cuda_is_asked_anything",
    "megavideo.preflight.node_checks.check_gpu":
        "tests/preflight/test_node_checks.py::test_gpus_are_counted_and_must_be_free",
    "megavideo.preflight.node_checks.check_versions":
        "tests/preflight/test_node_checks.py"
        "::test_versions_of_cuda_and_nccl_are_compared_where_there_is_a_gpu",
    "megavideo.preflight.run._Preflight._measured":
        "tests/preflight/test_node_checks.py::test_the_group_has_gloo_for_clocks_beside_nccl",
    "megavideo.train.health.peak.peak_flops_per_second":
        "tests/train/test_peak.py::test_a_gpu_is_known_by_its_name",
    "megavideo.train.health.stragglers.Stragglers._gathered":
        "tests/train/test_stragglers.py::test_on_a_gpu_the_probe_stands_for_what_is_computed",
}  # fmt: skip


def device_decisions(modules: Mapping[str, Module]) -> Iterator[tuple[str, int]]:
    """Functions in which something hangs on the kind of a device or on what CUDA has, each once, with a line.

    Found are `DEVICE.type`, comparisons with "cuda" or "cpu", `is_cuda`, `startswith("cuda")`, and questions whether
    there is a GPU, how many, of which kind, and what torch was built with.
    """
    for module in modules.values():
        places: dict[str, int] = {}
        for name, node in _named(module.tree, module.name):
            if _decides(node):
                places.setdefault(name, node.lineno)
        yield from places.items()


def uncovered(modules: Mapping[str, Module], table: Mapping[str, str]) -> Iterator[str]:
    """Such functions that the table does not have."""
    for name, line in device_decisions(modules):
        if name not in table:
            yield f"{name} (line {line}) hangs on the kind of device: cover it, and name by what in COVERED"


def stale(modules: Mapping[str, Module], table: Mapping[str, str]) -> Iterator[str]:
    """Rows of the table whose function is gone, or no longer asks."""
    found = dict(device_decisions(modules))
    for name in table:
        if name not in found:
            yield f"{name} is in COVERED and hangs on no device: drop the row"


def missing_covers(root: Path, table: Mapping[str, str]) -> Iterator[str]:
    """Tests and checks that rows name and that are not there."""
    for name, cover in table.items():
        file, _, function = cover.partition("::")
        is_check = file.startswith("tools/gpu_check/")
        if not is_check and not (file.startswith("tests/") and function.startswith("test_")):
            yield f"{name}: {cover} is neither tests/FILE.py::test_NAME nor tools/gpu_check/FILE.py::NAME"
        elif not (root / file).is_file() or function not in _functions(root / file):
            yield f"{name}: {cover} is not there"


def _named(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node below, with the dotted name of the function or class that holds it, or else of the module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _named(child, f"{name}.{child.name}")
        else:
            yield name, child
            yield from _named(child, name)


def _decides(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return _asks(node)
    if isinstance(node, ast.Compare):
        return any(_is_kind(operand) for operand in (node.left, *node.comparators))
    if isinstance(node, ast.Call):
        starts = isinstance(node.func, ast.Attribute) and node.func.attr == "startswith"
        return starts and any(_is_kind(argument) for argument in node.args)
    if isinstance(node, ast.ImportFrom):
        return any(alias.name in _ANSWERS or (node.module == "torch.cuda" and alias.name in _ASKED_OF_CUDA)
                   for alias in node.names)  # fmt: skip
    return isinstance(node, ast.MatchValue) and _is_kind(node.value)


def _asks(node: ast.Attribute) -> bool:
    """`device.type`, `x.is_cuda`, `torch.cuda.is_available`, `torch.version.cuda`, `torch.backends.cuda.ANY`."""
    words = ast.unparse(node).split(".")
    if node.attr == "type":
        return words[-2].lower().endswith("device") or words[-2].startswith("device(")
    if node.attr in _ASKED_OF_CUDA:
        return words[-2] in ("cuda", "accelerator")
    return (
        node.attr in _OF_TENSORS | _ANSWERS or words[-2:] == ["version", "cuda"] or words[-3:-1] == ["backends", "cuda"]
    )


def _is_kind(node: ast.expr) -> bool:
    """A text as "cuda" or "cuda:0", several of which one is, or `torch.device(...)`."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value.partition(":")[0] in _KINDS
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(_is_kind(element) for element in node.elts)
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.device"


def _functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
