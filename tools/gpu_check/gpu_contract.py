"""The part of the contract of attention kernels that only a GPU can answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from megavideo.parallel.attention.timing import Shape, time_kernel
from tools.gpu_check.cases import Subject, make, run, segments
from tools.gpu_check.unasked import Unasked

_FORWARD, _BACKWARD = 550.0, 450.0  # TFLOP/s on a Hopper of full speed, in four segments of 16k, heads 128 wide
_AGAIN = """
import torch
from megavideo.parallel.attention import fa4
fa4.warm_up(fa4.load(), 128, torch.bfloat16, torch.device("cuda"))
"""


def many_elements(subject: Subject) -> None:
    """More than 2^31 elements in a tensor: the last segment is what it is alone."""
    _needs_gpu(subject)
    heads, length, count = 128, 1024, 129  # 2.16e9 elements
    case = make(subject, [length] * count, head_dim=128, heads=heads)
    out, lse = subject.attention(*case.inputs, case.queries, case.keys)
    grads = subject.attention.backward(case.grad, case.inputs, out, lse, case.queries, case.keys)
    alone = segments([length], subject.device)
    last = slice(length * (count - 1), length * count)
    inputs = (case.query[last], case.key[last], case.value[last])
    own, own_lse = subject.attention(*inputs, alone, alone)
    own_grads = subject.attention.backward(case.grad[last], inputs, own, own_lse, alone, alone)
    for name, ours, theirs in zip(("dk", "dv"), grads[1:], own_grads[1:], strict=True):
        assert torch.equal(ours[last], theirs), f"{name} of the last segment differs"
    assert torch.equal(out[last], own) and torch.equal(lse[:, last], own_lse), "the last segment differs"


def nothing_waits(subject: Subject) -> None:
    """Forward and backward copy nothing to the host: torch raises where something does."""
    _needs_gpu(subject)
    case = make(subject, [200, 0, 77], [130, 5, 0], tails=(9, 7))
    run(subject.attention, case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(subject.attention, case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def nothing_compiles_anew(subject: Subject) -> None:
    """Fifty packs of all sorts of lengths use the same compiled kernels (flash attention 4)."""
    _needs_fa4(subject)
    from flash_attn.cute import interface

    def count() -> int:
        kept = (interface._flash_attn_fwd, interface._flash_attn_bwd, interface._bwd_preprocess)
        return sum(len(each.compile_cache.cache) for each in (*kept, interface._bwd_postprocess_convert))

    run(subject.attention, make(subject, [8, 8]))
    before, draw = count(), torch.Generator().manual_seed(0)
    for _ in range(50):
        number = int(torch.randint(1, 200, (1,), generator=draw))
        lengths = torch.randint(0, 400, (2, number), generator=draw)
        run(subject.attention, make(subject, lengths[0].tolist(), lengths[1].tolist(), tails=(5, 5)))
    assert count() == before, f"{count() - before} more kernels compiled"


def another_process_compiles_nothing(subject: Subject) -> None:
    """Compiled kernels are found on disk by the next process (flash attention 4)."""
    _needs_fa4(subject)
    from megavideo.parallel.attention import fa4

    folder = fa4.keep_compiled()
    for _ in range(2):
        before = _compiled(folder)
        subprocess.run([sys.executable, "-c", _AGAIN], check=True, env=dict(os.environ), timeout=300)
    assert _compiled(folder) == before and before, f"{len(_compiled(folder) - before)} kernels compiled once more"


def speed(subject: Subject) -> float:
    """TFLOP/s in four segments of 16k on a Hopper, as a share of those asked for; the slower of both directions."""
    _needs_gpu(subject)
    if torch.cuda.get_device_capability(subject.device)[0] != 9 or subject.attention.kernel.name == "fa2":
        raise Unasked("figures are known for Hopper, and for kernels made for it")
    found = time_kernel(subject.attention, Shape((16384,) * 4, (16384,) * 4, 16, 128), subject.dtype, subject.device)
    return max(_FORWARD / found.forward_tflops, _BACKWARD / found.backward_tflops)


GPU_CONTRACT: Mapping[str, Callable[[Subject], float | None]] = {
    "more than 2^31 elements": many_elements,
    "nothing waits for the device": nothing_waits,
    "nothing compiles anew": nothing_compiles_anew,
    "another process compiles nothing": another_process_compiles_nothing,
    "speed": speed,
}


def _needs_gpu(subject: Subject) -> None:
    if not subject.on_gpu:
        raise Unasked("needs a GPU")


def _needs_fa4(subject: Subject) -> None:
    _needs_gpu(subject)
    if subject.attention.kernel.name != "fa4":
        raise Unasked("compiles nothing when it is called")


def _compiled(folder: Path) -> set[Path]:
    return set(folder.rglob("*.o"))
