"""`megavideo doctor`: which accelerated parts this machine has, or what a dataset is like before a run on it."""

from __future__ import annotations

from typing import Any

from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.doctor import DoctorRun
from megavideo.evaluation.dataset_report import DatasetReport

_NAMED = 5


def _run(cfg: DoctorRun, texts: Texts) -> Any:
    if cfg.data is not None:
        from megavideo.evaluation.dataset_check import check_dataset

        return check_dataset(cfg)
    from megavideo.parallel.machine_report import report_machine

    return report_machine(cfg.attention)


def describe_machine(found: Any) -> str:
    """The lines a user reads: torch, the GPUs, and a row for each part; one that is missing says what runs instead.

    Then the attention kernels: which one `layers.attention=auto` takes, what the others lack, and how fast they are.
    """
    cuda = f"built for CUDA {found.cuda}" if found.cuda else "built without CUDA"
    lines = [f"torch {found.torch}, {cuda}", f"GPUs: {len(found.gpus) or 'none'}"]
    lines += [
        f"  {index}  {gpu.name}, compute capability {gpu.capability}, {gpu.memory_gib:g} GiB"
        for index, gpu in enumerate(found.gpus)
    ]
    width = max(len(part.name) for part in found.parts)
    lines.append("")
    for part in found.parts:
        lines.append(f"{'yes' if part.available else 'no':3}  {part.name.ljust(width)}  {part.detail}")
        if not part.available:
            lines.append(f"{'':3}  {'':{width}}  instead: {part.instead}")
    lines += ["", "attention kernels, the fastest first (layers.attention)"]
    lines += [line for kernel in found.kernels for line in _kernel_lines(kernel)]
    if found.speeds:
        lines += [
            "",
            f"{'kernel':9} {'attends':8} {'ms':>9} {'TFLOP/s':>8} {'ms':>9} {'TFLOP/s':>8}  forward, backward",
        ]
        lines += [_speed_line(row) for row in found.speeds]
    return "\n".join(lines)


def _kernel_lines(kernel: Any) -> list[str]:
    mark = "auto" if kernel.taken else "no" if kernel.missing else "yes"
    name = kernel.title + (f" ({kernel.version})" if kernel.version else "")
    lines = [f"{mark:4}  {kernel.name:8}  {name}"]
    if kernel.missing:
        lines.append(f"{'':16}  {kernel.missing}")
        lines += [f"{'':16}  {kernel.install}"] if kernel.install else []
    return lines


def _speed_line(row: Any) -> str:
    if row.speed is None:
        return f"{row.kernel:9} {row.attends:8} FAILED: {row.fault}"
    found = row.speed
    forward = f"{found.forward_ms:9.3f} {found.forward_tflops:8.3g}"
    return f"{row.kernel:9} {row.attends:8} {forward} {found.backward_ms:9.3f} {found.backward_tflops:8.3g}"


def describe_dataset(report: Any) -> str:
    """The lines a user reads: a row for each number, the first of what is dropped or bad, and what stops the run."""
    from megavideo.evaluation.dataset_page import rows_of

    rows = rows_of(report)
    width = max(len(name) for name, _ in rows)
    lines = [f"{report.data}, version {report.version}", ""]
    lines += [f"{name.ljust(width)}  {value}" for name, value in rows]
    for row in report.dropped[:_NAMED]:
        lines.append(f"{'dropped'.ljust(width)}  {row.name}: {row.reason}")
    for row in report.shards.same_content_first[:_NAMED]:
        lines.append(f"{'same latent'.ljust(width)}  {row.name}: {row.reason}")
    lines.append("")
    if report.page:
        lines.append(f"histograms: {report.page}")
    lines += [f"WARNING: {warning}" for warning in report.warnings]
    lines += [f"FAULT: {fault}" for fault in report.faults]
    lines.append("the run would fail or drop too much" if report.faults else "nothing found that would stop the run")
    return "\n".join(lines)


def _describe(report: Any) -> str:
    return describe_dataset(report) if isinstance(report, DatasetReport) else describe_machine(report)


VERB = Verb(
    name="doctor",
    summary="list the accelerated parts of this machine and time its attention kernels, or with data= check a dataset",
    primary="doctor",
    schema=DoctorRun,
    run=_run,
    describe=_describe,
    failed=lambda report: isinstance(report, DatasetReport) and bool(report.faults),
    examples=(
        "megavideo doctor",
        "megavideo doctor --json",
        "megavideo doctor attention.tokens=75600 attention.segments=1 attention.heads=40",
        "megavideo doctor data=FOLDER tokens_per_pack=2048 text_tokens_per_pack=1024 out=report",
        "megavideo doctor data=s3://BUCKET/PREFIX packs_per_step=1024 dp=1024 steps=100000 check_hashes=false",
    ),
)
