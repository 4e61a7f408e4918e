"""Commands that are started at the same moment, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Barrier

from megavideo.testing.launch import Finished

_TIMEOUT_SECONDS = 240.0
# `pytest` is the main module of whoever starts them, which each would import anew
_PRELOAD = [
    "pytest", "tests.start_together", "megavideo.parity.preload", "megavideo.cli.main", "megavideo.config.load",
    "megavideo.train.run", "megavideo.encoders.encode.run", "megavideo.generate.run", "megavideo.preflight.run",
    "megavideo.interop.adapter_run", "megavideo.interop.export.run", "megavideo.interop.import_run", "cv2", "boto3",
]  # fmt: skip


def start_together(commands: Sequence[Sequence[str]], logs: Path, within: Path | None = None) -> list[Finished]:
    """How each command line ended, of processes that began, in the folder `within`, when the last was ready.

    Raises RuntimeError where one does not end.
    """
    logs.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    ready = context.Barrier(len(commands))
    files = [(logs / f"out_{number}.txt", logs / f"err_{number}.txt") for number in range(len(commands))]
    store = {name: value for name, value in os.environ.items() if name.startswith(("S3_", "AWS_"))}
    processes = [
        context.Process(target=_main, args=(list(words), (out, err), ready, store, within))
        for words, (out, err) in zip(commands, files, strict=True)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + _TIMEOUT_SECONDS
    for process in processes:
        process.join(max(end - time.monotonic(), 0.0))
    stuck = [process.pid for process in processes if process.exitcode is None]
    for process in processes:
        process.kill()
        process.join()
    ended = [
        Finished(process.exitcode or 0, out.read_text(), err.read_text())
        for process, (out, err) in zip(processes, files, strict=True)
    ]
    if stuck:
        raise RuntimeError(f"{stuck} did not end\n" + "\n".join(finished.err for finished in ended))
    return ended


def _main(
    words: list[str], logs: tuple[Path, Path], ready: Barrier, store: dict[str, str], within: Path | None
) -> None:
    from megavideo.cli.main import main
    from megavideo.parallel.processes.distributed import leave

    for descriptor, path in enumerate(logs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.environ |= store | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if within is not None:
        os.chdir(within)
    ready.wait()
    leave(main(words))
