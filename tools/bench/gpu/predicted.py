"""Part 6: each eager step of part 4 beside a prediction: counted FLOPs and bytes over the ceilings of parts 2 and 3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from found_kernels import kernels_here
from packed_attention import AttentionCase
from roofline import Counted, count_step
from rows import Row, Value, value_of
from session import Session
from step_run import StepCase, random_dit
from training_steps import EAGER, cases, chosen_attention

from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.layers import LocalLayers

_UPDATE_BYTES = 14  # of AdamW in bf16, a parameter: reads weight, gradient and moments, writes all but the gradient


@dataclass(frozen=True)
class Ceilings:
    """Measured rates: of products by their size, of attention by pass, of copies, and the least time of a kernel."""

    products: dict[tuple[int, int, int], float]
    attention_forward: float
    attention_backward: float
    bytes_per_second: float
    launch_seconds: float

    def seconds(self, counted: Counted) -> dict[str, float]:
        """Time by the kind of work."""
        products = sum(
            count * max(2 * math.prod(shape) / self._rate(shape), _product_bytes(shape) / self.bytes_per_second)
            for shape, count in counted.products.items()
        )
        attention = (
            counted.attention_forward / self.attention_forward + counted.attention_backward / self.attention_backward
        )
        return {"products": products, "attention": attention, "memory": counted.other_bytes / self.bytes_per_second}

    def _rate(self, shape: tuple[int, int, int]) -> float:
        """Of the measured product whose sizes are nearest."""
        return self.products[min(self.products, key=lambda other: _distance(shape, other))]


def measure(session: Session) -> Iterator[Row]:
    """Every case of part 4 that was measured."""
    for case in cases(session):
        measured = value_of(session.earlier, "step_ms", part="model", case=case.name, name=EAGER)
        if measured is None:
            yield session.skipped(case.name, EAGER, "no such step was measured in part model")
            continue
        yield from session.guarded(case.name, [EAGER], partial(_predict, session, case, measured))


def _predict(session: Session, case: StepCase, measured_ms: float) -> Iterator[Row]:
    ceilings = _ceilings(session, case)
    text = next(
        str(row.values["recompute"])
        for row in session.earlier
        if row.part == "model" and row.case == case.name and row.name == EAGER
    )
    again = 0 if text == "none" else int(text.split()[0])
    counted, parameters = counted_step(session, case, again)
    seconds = ceilings.seconds(counted)
    seconds["update"] = _UPDATE_BYTES * parameters / ceilings.bytes_per_second
    total = sum(seconds.values())
    values: dict[str, Value | None] = {
        "measured_ms": measured_ms,
        "predicted_ms": total * 1e3,
        "measured_over_predicted": measured_ms / (total * 1e3),
        **{f"{name}_ms": value * 1e3 for name, value in seconds.items()},
        "kernels": counted.operations,
        "least_launch_ms": counted.operations * ceilings.launch_seconds * 1e3,
        "memory_bytes_per_token_width_layer": counted.other_bytes
        / (case.content.pack_tokens * case.model.width * case.model.layers),
    }
    yield session.row(case.name, EAGER, values)


def counted_step(session: Session, case: StepCase, again: int) -> tuple[Counted, int]:
    """A step's counts, `again` of whose blocks are computed again, and the model's parameters.

    All blocks cost alike, so that models of one and two are counted.
    """
    meta = torch.device("meta")
    attention = next(iter(kernels_here(session.device).values()))
    pack = case.content.pack(case.model, meta, torch.bfloat16)

    def count(layers: int, recompute: RecomputeConfig | None) -> tuple[Counted, int]:
        model = random_dit(case.model, layers, LocalLayers(attention), meta, recompute)
        found = count_step(lambda: model(pack)[: case.content.tokens], case.content.segments)
        return found, sum(parameter.numel() for parameter in model.parameters())

    (one, small), (two, large) = count(1, None), count(2, None)
    block = two.plus(one, -1.0)
    total = one.plus(block, case.model.layers - 1.0)
    if again:
        full = RecomputeConfig(kind="full")
        recomputed = count(2, full)[0].plus(count(1, full)[0], -1.0)
        total = total.plus(recomputed, again).plus(block, -float(again))
    return total, small + (large - small) * (case.model.layers - 1)


def _ceilings(session: Session, case: StepCase) -> Ceilings:
    """From the rows of parts 2 and 3. Raises LookupError where one is missing."""
    rows = session.earlier
    products = {
        (int(row.values["rows"]), int(row.values["in"]), int(row.values["out"])): 1e12 * float(row.values["tflops"])
        for row in rows
        if row.part == "ceilings" and row.name == "bf16" and row.status == "ok"
    }
    copy = value_of(rows, "gb_per_s", part="ceilings", name="copy")
    launch = value_of(rows, "us", part="ceilings", case="launch")
    if not products or copy is None or launch is None:
        raise LookupError("part ceilings has no product, copy or launch to predict from")
    forward, backward = _attention_rates(session, case)
    return Ceilings(products, forward, backward, copy * 1e9, launch * 1e-6)


def _attention_rates(session: Session, case: StepCase) -> tuple[float, float]:
    """Rates in FLOP/s of the kernel that part 4 ran with, from the measured pack that is nearest in segment length."""
    sizes, kernel = session.sizes, chosen_attention(session).kernel.name
    length = case.content.grid.num_tokens
    found: list[tuple[float, float, float]] = []
    for tokens in sizes.lengths:
        for count in sizes.pack_counts:
            head_dim = case.model.head_dim if case.model.head_dim in sizes.head_widths else sizes.head_widths[0]
            pack = AttentionCase(head_dim, sizes.attention_width // head_dim, count, tokens // count)
            wanted = {"part": "attention", "case": pack.name, "name": kernel}
            forward = value_of(session.earlier, "forward_tflops", **wanted)
            backward = value_of(session.earlier, "backward_tflops", **wanted)
            if forward is not None and backward is not None:
                found.append((abs(math.log(pack.length / length)), forward * 1e12, backward * 1e12))
    if not found:
        raise LookupError(f"part attention has no time of kernel {kernel} to predict from")
    return min(found)[1:]


def _product_bytes(shape: tuple[int, int, int]) -> float:
    rows, inner, out = shape
    return 2.0 * (rows * inner + inner * out + rows * out)


def _distance(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    return sum(abs(math.log(a / b)) for a, b in zip(sorted(one), sorted(other), strict=True))
