"""Parts of the attention kernels: what the stand-in refuses, bounds, queries without keys, warm-up of a machine."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megavideo.model.attention.cpu_flash import CPU_FLASH, CpuFlash
from megavideo.model.attention.kernel import Lengths
from megavideo.model.attention.operator import Attention
from megavideo.model.attention.segments import Segments
from megavideo.parallel.attention import fa4
from megavideo.parallel.attention.lengths import rounded_up, without_keys
from megavideo.parallel.attention.stand_in import KernelMisused, StandIn
from megavideo.parallel.attention.timing import Shape, time_kernel
from tests.parallel.attention_ranks import warm_up

CPU = torch.device("cpu")


def lengths_of(*bounds: int) -> Lengths:
    """Segments with these bounds."""
    sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
    return Lengths(torch.tensor(bounds, dtype=torch.int32), bounds[-1], max(sizes))


QUERIES, KEYS = lengths_of(0, 5, 5, 9), lengths_of(0, 3, 4, 7)


def tokens(count: int, heads: int = 2, width: int = 8) -> torch.Tensor:
    """Random tokens."""
    return torch.randn(count, heads, width, generator=torch.Generator().manual_seed(count))


def tail(tensor: torch.Tensor, row: int, value: float) -> torch.Tensor:
    """The tensor with one element replaced."""
    changed = tensor.clone()
    changed[row, 0, 0] = value
    return changed


Forward = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Lengths, Lengths]
# what is given, and what is said of it
MISUSES: dict[str, tuple[Callable[[Forward], Forward], str]] = {
    "wide": (lambda f: (f[0], f[1], f[2], replace(QUERIES, cu_seqlens=QUERIES.cu_seqlens.long()), f[4]), "int32"),
    "strided": (
        lambda f: (f[0], f[1], f[2], replace(QUERIES, cu_seqlens=torch.arange(8, dtype=torch.int32)[::2]), f[4]),
        "contiguous row",
    ),
    "columns": (lambda f: (tokens(12, width=16)[..., ::2], *f[1:]), "width contiguous"),
    "heads": (lambda f: (tokens(12, heads=4), *f[1:]), "same heads"),
    "widths": (lambda f: (f[0], tokens(9, width=16), tokens(9, width=16), *f[3:]), "same heads, of one width"),
    "precisions": (lambda f: (f[0], f[1].double(), *f[2:]), "one precision"),
    "more segments": (lambda f: (*f[:4], lengths_of(0, 3, 7)), "as many segments"),
    "total": (lambda f: (*f[:3], replace(QUERIES, total=10), f[4]), "9 tokens of segments, not 10"),
    "longest": (lambda f: (*f[:4], replace(KEYS, longest=4)), "longest segment of the key has 3, not 4"),
    "too long": (lambda f: (*f[:3], lengths_of(0, 5, 5, 13), f[4]), "end at 13, of 12 rows"),
    "backwards": (lambda f: (*f[:3], replace(QUERIES, cu_seqlens=torch.tensor([0, 5, 4, 9]).int()), f[4]), "follow"),
    "query": (lambda f: (tail(f[0], 9, torch.inf), *f[1:]), "rows of the query past"),
    "key": (lambda f: (f[0], tail(f[1], 8, torch.nan), *f[2:]), "rows of the key past"),
    "value": (lambda f: (*f[:2], tail(f[2], 7, -torch.inf), *f[3:]), "rows of the value past"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_the_stand_in_refuses(misuse: str) -> None:
    given: Forward = (tokens(12), tokens(9), tokens(9), QUERIES, KEYS)
    StandIn().attend(*given)
    change, told = MISUSES[misuse]
    changed = change(given)
    with pytest.raises(KernelMisused, match=told):
        StandIn().attend(*changed)
    with pytest.raises(KernelMisused):
        out, lse = torch.zeros_like(changed[0]), torch.zeros(2, 12)
        StandIn().attend_backward(torch.zeros_like(out), changed[:3], out, lse, *changed[3:])


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("grad", lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), "gradient is contiguous"),
        ("grad", lambda t: tail(t, 10, torch.nan), "rows of the output's gradient past"),
        ("grad", lambda t: t[:11], "have the shape"),
        ("out", lambda t: t.double(), "have the precision"),
        ("lse", lambda t: t.double(), "log-sum-exp is torch.float32"),
        ("lse", lambda t: t.T.contiguous().T, "contiguous"),
        ("lse", lambda t: t[:, :11].contiguous(), "heads, queries"),
    ],
)
def test_the_stand_in_refuses_in_the_backward_pass(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], told: str
) -> None:
    inputs = (tokens(12), tokens(9), tokens(9))
    out, lse = CpuFlash().attend(*inputs, QUERIES, KEYS)
    given = {"grad": tokens(12), "out": out, "lse": lse}
    StandIn().attend_backward(given["grad"], inputs, given["out"], given["lse"], QUERIES, KEYS)
    given[name] = change(given[name])
    with pytest.raises(KernelMisused, match=told):
        StandIn().attend_backward(given["grad"], inputs, given["out"], given["lse"], QUERIES, KEYS)


def test_the_stand_in_has_the_numbers_of_the_cpu_and_nan_elsewhere() -> None:
    inputs, grad = (tokens(12), tokens(9), tokens(9)), tokens(12)
    out, lse = CpuFlash().attend(*inputs, QUERIES, KEYS)
    found, sums = StandIn().attend(*inputs, QUERIES, KEYS)
    assert torch.equal(found[:9], out[:9]) and torch.equal(sums[:, :9], lse[:, :9])
    assert found[9:].isnan().all() and sums[:, 9:].isnan().all()
    grads = CpuFlash().attend_backward(grad, inputs, out, lse, QUERIES, KEYS)
    poisoned = StandIn().attend_backward(grad, inputs, out, lse, QUERIES, KEYS)
    for ours, theirs, total in zip(poisoned, grads, (9, 7, 7), strict=True):
        assert torch.equal(ours[:total], theirs[:total]) and ours[total:].isnan().all()


def test_bounds_are_few_and_above_all_single_blocks() -> None:
    assert [rounded_up(n, 512) for n in (1, 512, 513, 75_600)] == [512, 512, 1024, 131_072]
    # of flash attention 4: no kernel of a single block is compiled for, whose blocks have 256 rows at most
    assert len({rounded_up(n, fa4._LEAST) for n in range(1, 513)}) == 1 and fa4._LEAST > 256


def test_queries_without_keys_are_found() -> None:
    queries, keys = lengths_of(0, 2, 2, 5, 6, 6), lengths_of(0, 3, 3, 3, 4, 9)
    assert without_keys(queries, keys, 9).tolist() == [False] * 2 + [True] * 3 + [False] * 4


def test_work_is_that_of_the_flop_counter() -> None:
    shape = Shape((20, 5), (7, 30), 2, 8)
    found = time_kernel(CPU_FLASH, shape, torch.float32, CPU)
    inputs = [tokens(25).requires_grad_(), tokens(37).requires_grad_(), tokens(37).requires_grad_()]
    with FlopCounterMode(display=False) as counter:
        CPU_FLASH(*inputs, Segments.of((0, 20, 25)), Segments.of((0, 7, 37)))[0].sum().backward()
    assert counter.get_total_flops() == (4 + 10) * shape.work
    assert found.forward_tflops * found.forward_ms == pytest.approx(4 * shape.work / 1e9)
    assert found.backward_tflops * found.backward_ms == pytest.approx(10 * shape.work / 1e9)


def test_one_process_of_a_machine_compiles_and_the_others_find_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=warm_up, args=(tmp_path, number)) for number in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0, 0]
    told = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3)]
    assert sorted(told) == [[], [], ["_flash_attn_fwd", "_flash_attn_bwd"]]


def test_a_process_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with fa4._one_at_a_time(tmp_path / "lock"):
            (tmp_path / "inside").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "inside").exists():
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    begin = time.monotonic()
    with fa4._one_at_a_time(tmp_path / "lock"):
        assert time.monotonic() - begin < 10


def test_the_folder_of_compiled_kernels_is_the_users_where_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("ENABLED", "DIR"):
        monkeypatch.delenv(f"FLASH_ATTENTION_CUTE_DSL_CACHE_{name}", raising=False)
    monkeypatch.setattr(fa4.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = fa4.keep_compiled()
    assert folder.parent.parent == tmp_path and folder.is_dir()
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "1"
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(folder)
    monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(tmp_path / "mine"))
    assert fa4.keep_compiled() == tmp_path / "mine"


def test_the_operator_of_a_kernel_is_made_once() -> None:
    """A second definition would take the first one's memory away, and its callers would crash."""
    assert Attention(StandIn())._attend is Attention(StandIn())._attend
    assert Attention(CpuFlash())._attend is CPU_FLASH._attend

    class Other(CpuFlash):
        pass

    with pytest.raises(AssertionError, match="two kernels of the name cpu"):
        Attention(Other())
