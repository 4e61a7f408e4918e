"""`megavideo doctor`: which accelerated parts this machine has, and what runs in place of the others."""

from __future__ import annotations

from typing import Any

from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.doctor import DoctorRun


def _run(cfg: DoctorRun, texts: Texts) -> Any:
    from megavideo.parallel.accelerators import detect

    return detect()


def describe_machine(found: Any) -> str:
    """The lines a user reads: torch, the GPUs, and a row for each part; one that is missing says what runs instead."""
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
    return "\n".join(lines)


VERB = Verb(
    name="doctor",
    summary="list the accelerated parts of this machine, and what runs in place of missing ones",
    primary="doctor",
    schema=DoctorRun,
    run=_run,
    describe=describe_machine,
    examples=("megavideo doctor", "megavideo doctor --json"),
)
