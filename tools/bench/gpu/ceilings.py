"""Part 2: what the device can do at best: matrix products of our layers in bf16 and FP8, copies, and launches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from rows import Row, Value
from session import Session, spread_values
from timing import Run, Timing

_SCALE_LIMIT = 448.0  # the largest number of float8_e4m3fn
_LAUNCHES = 200


def measure(session: Session) -> Iterator[Row]:
    """Each product forward and as a weight's gradient, then copies and launches."""
    each = session.left() * 0.7 / len(session.sizes.products)
    for name, rows, in_dim, out_dim in session.sizes.products:
        case = f"{name}: {rows} x {in_dim} x {out_dim}"
        late = session.too_late(case, ["bf16", "fp8"], 6 * 2 * rows * in_dim * out_dim / session.sizes.slowest_flops)
        if late:
            yield from late
            continue
        yield from session.guarded(
            case, ["bf16", "fp8"], partial(_products, session, case, (rows, in_dim, out_dim), each)
        )
    yield from session.guarded("copy on the device", ["copy", "add"], lambda: _device_copies(session))
    yield from session.guarded("copy between host and device", ["copies"], lambda: _host_copies(session))
    yield from session.guarded("launch", ["small addition"], lambda: _launches(session))


def _products(session: Session, case: str, dims: tuple[int, int, int], seconds: float) -> Iterator[Row]:
    rows, in_dim, out_dim = dims
    with session.device:
        x = torch.randn(rows, in_dim, dtype=torch.bfloat16)
        weight = torch.randn(out_dim, in_dim, dtype=torch.bfloat16)
        grad = torch.randn(rows, out_dim, dtype=torch.bfloat16)
    contestants: dict[str, Run] = {
        "bf16": lambda lap: x @ weight.T,
        "bf16, gradient of the weight": lambda lap: grad.T @ x,
        "fp8": _fp8_product(x, weight),
    }

    def values(name: str, timing: Timing) -> dict[str, Value | None]:
        rate = 2 * rows * in_dim * out_dim / timing.median / 1e12
        return {"tflops": rate, "rows": rows, "in": in_dim, "out": out_dim, **spread_values("time", timing)}

    yield from session.compare(case, contestants, values, seconds=seconds)


def _fp8_product(x: torch.Tensor, weight: torch.Tensor) -> Run:
    """The product alone, of operands that are cast beforehand with one scale each."""
    operands, scales = [], []
    for tensor in (x, weight):
        scale = tensor.abs().amax().float() / _SCALE_LIMIT
        operands.append((tensor / scale).to(torch.float8_e4m3fn))
        scales.append(scale)
    left, right = operands

    def run(lap: object) -> torch.Tensor:
        return torch._scaled_mm(
            left, right.T, scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return run


def _device_copies(session: Session) -> Iterator[Row]:
    count = session.sizes.copy_bytes // 2
    with session.device:
        source, other = (torch.randn(count, dtype=torch.bfloat16) for _ in range(2))
        target = torch.empty_like(source)
    moved = {"copy": 2 * source.nbytes, "add": 3 * source.nbytes}
    contestants: dict[str, Run] = {
        "copy": lambda lap: target.copy_(source),
        "add": lambda lap: torch.add(source, other, out=target),
    }

    def values(name: str, timing: Timing) -> dict[str, Value | None]:
        return {"gb_per_s": moved[name] / timing.median / 1e9, **spread_values("time", timing)}

    yield from session.compare("copy on the device", contestants, values, seconds=3)


def _host_copies(session: Session) -> Iterator[Row]:
    case = "copy between host and device"
    count = session.sizes.copy_bytes // 4
    here = torch.randn(count // 2, dtype=torch.bfloat16, device=session.device)
    pageable = torch.ones(count // 2, dtype=torch.bfloat16)
    contestants: dict[str, Run] = {
        "pageable, to the device": lambda lap: here.copy_(pageable),
        "pageable, to the host": lambda lap: pageable.copy_(here),
    }
    if session.device.type == "cuda":
        pinned = pageable.pin_memory()
        contestants |= {
            "pinned, to the device": lambda lap: here.copy_(pinned, non_blocking=True),
            "pinned, to the host": lambda lap: pinned.copy_(here, non_blocking=True),
        }
    else:
        yield session.skipped(case, "pinned", "no memory is pinned without a GPU")

    def values(name: str, timing: Timing) -> dict[str, Value | None]:
        return {"gb_per_s": here.nbytes / timing.median / 1e9, **spread_values("time", timing)}

    yield from session.compare(case, contestants, values, seconds=3)


def _launches(session: Session) -> Iterator[Row]:
    """What a kernel costs that has nothing to do: the shortest time between two of an eager program."""
    small = torch.zeros(16, device=session.device)

    def run(lap: object) -> None:
        for _ in range(_LAUNCHES):
            small.add_(1.0)

    def values(name: str, timing: Timing) -> dict[str, Value | None]:
        return {"us": timing.median / _LAUNCHES * 1e6, **spread_values("time", timing)}

    yield from session.compare("launch", {"small addition": run}, values, seconds=2)
