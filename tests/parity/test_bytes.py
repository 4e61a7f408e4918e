"""Bytes that processes send, counted at their process groups, beside the formulas of communication."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megavideo.config.layout import parse_layout
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.optim.matrices import num_matrices
from megavideo.parallel.engines.engine import EnginePlan
from megavideo.parity.pool import Pool
from megavideo.parity.record import Record
from megavideo.parity.run import num_processes
from megavideo.parity.spec import ParitySpec
from megavideo.planning.communication import (
    layer_bytes,
    packed_ring_bytes,
    pipeline_bytes,
    ring_bytes,
    tensor_parallel_bytes,
    tensor_parallel_rest_bytes,
    ulysses_bytes,
    zero_bytes,
)

# one clip that fills the pack, in one micro-step; a wide model where terms that do not grow with the tokens must be few
NARROW = ParitySpec(heads=16, num_layers=2, tokens=256, steps=1, packs_per_step=1, pack="1x16x16")
WIDE = replace(NARROW, heads=48, tokens=512, pack="2x16x16", precision="bf16")
TEXT_TOKENS, ROWS = 10, 4  # of a pack of one segment: text tokens, and rows of conditioning
BYTES = {"fp32": 4, "bf16": 2}


@contextmanager
def merged_gradients() -> Iterator[None]:
    """DeepSpeed's default: ZeRO 1 and 2 whose gradients go to every rank."""
    with _zero_settings(use_multi_rank_bucket_allreduce=True):
        yield


@contextmanager
def nothing_kept() -> Iterator[None]:
    """ZeRO 3 as for a model of so many parameters that none are kept from their use to the next."""
    with _zero_settings(
        stage3_max_live_parameters=0, stage3_max_reuse_distance=0, stage3_prefetch_bucket_size=0,
        stage3_param_persistence_threshold=0,
    ):  # fmt: skip
        yield


def _zero_settings(**given: Any) -> Any:
    original = EnginePlan.deepspeed_settings

    def settings(plan: EnginePlan) -> dict[str, Any]:
        found = original(plan)
        found["zero_optimization"] |= given
        return found

    return patch.object(EnginePlan, "deepspeed_settings", settings)


@cache
def counted(spec: ParitySpec, layout: str, inside: str = "") -> list[dict[str, float]]:
    """What each process of a layout sent in its step."""
    records = Pool().run(
        spec, layout, num_processes(parse_layout(layout)), inside and f"{__name__}:{inside}", count_bytes=True
    )
    return [record.sent_bytes or {} for record in records]


def total(sent: dict[str, float], *words: str) -> float:
    """Bytes under the keys that have all the words."""
    return sum(value for key, value in sent.items() if set(words) <= set(key.split("/")))


def per_layer(spec: ParitySpec, layout: str, purpose: str) -> list[float]:
    """Each process's bytes of one layer: those of two layers less those of one, embedders and head falling out."""
    one, two = (counted(replace(spec, num_layers=layers), layout) for layers in (1, 2))
    return [total(b, purpose) - total(a, purpose) for a, b in zip(one, two, strict=True)]


def num_parameters(spec: ParitySpec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DiT(spec.model, LocalLayers()).parameters())


def tensor_parallel_formulas(spec: ParitySpec, layout: str) -> tuple[int, int]:
    """One layer's bytes, and those of its small terms."""
    mesh, width = parse_layout(layout), spec.model.width
    sizes: dict[str, Any] = {"element_bytes": BYTES[spec.precision], "tp": mesh.tp, "sp": mesh.sp}
    tokens = spec.tokens // mesh.cp
    return (
        tensor_parallel_bytes(tokens, width, **sizes),
        tensor_parallel_rest_bytes(tokens, -(-TEXT_TOKENS // mesh.cp), width, **sizes),
    )


def _slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def test_tensor_parallel_layer_in_bf16() -> None:
    layout = "tp2-sp-zero1"
    formula, rest = tensor_parallel_formulas(WIDE, layout)
    sent = per_layer(WIDE, layout, "tp")
    assert sent == [formula + rest] * 2
    assert sent == pytest.approx([formula] * 2, rel=0.01)


@pytest.mark.parametrize("layout", [_slow("tp2"), "tp2-sp", _slow("tp4-sp")])
def test_tensor_parallel_layer_to_the_byte(layout: str) -> None:
    exact = sum(tensor_parallel_formulas(NARROW, layout))
    assert per_layer(NARROW, layout, "tp") == [exact] * parse_layout(layout).tp


def test_tensor_parallel_collectives_of_each_phase() -> None:
    """Three gathers and scatters forward; backward their opposites, and three inputs gathered again."""
    passes = NARROW.tokens * NARROW.model.width * 4 // 2
    one, two = (counted(replace(NARROW, num_layers=layers), "tp2-sp")[0] for layers in (1, 2))
    for operation, phase, count in [
        ("all_gather", "forward", 3), ("reduce_scatter", "forward", 3),
        ("all_gather", "backward", 6), ("reduce_scatter", "backward", 3),
    ]:  # fmt: skip
        assert total(two, "tp", operation, phase) - total(one, "tp", operation, phase) == count * passes


@pytest.mark.parametrize("ranks", [2, _slow(4)])
def test_ulysses_layer(ranks: int) -> None:
    formula = ulysses_bytes(NARROW.tokens, NARROW.model.width, ranks, 4)
    assert per_layer(NARROW, f"cp{ranks}-ulysses", "ulysses") == [formula] * ranks


@pytest.mark.parametrize("ranks", [2, _slow(4)])
def test_ring_layer_with_one_clip(ranks: int) -> None:
    formula = ring_bytes(NARROW.tokens, NARROW.model.width, ranks, 4)
    assert per_layer(NARROW, f"cp{ranks}-ring", "ring") == [formula] * ranks


@pytest.mark.parametrize("pack", ["1x4x12+1x8x14+1x5x16", _slow("images")])
def test_ring_layer_of_a_pack_sends_only_what_segments_share(pack: str) -> None:
    spec = replace(NARROW, pack=pack)
    lengths = [grid.num_tokens for grid in spec.grids(0)]
    sent = per_layer(spec, "cp4-ring", "ring")
    assert max(sent) == packed_ring_bytes(lengths, spec.tokens, spec.model.width, 4, 4)
    assert 0 < max(sent) < 0.7 * ring_bytes(spec.tokens, spec.model.width, 4, 4)


@pytest.mark.parametrize("layout", [_slow("tp2-sp-cp2-ring"), "cp4-2d"])
def test_every_axis_of_a_layout_at_once(layout: str) -> None:
    formula = layer_bytes(parse_layout(layout), NARROW.tokens, TEXT_TOKENS, NARROW.model.width, NARROW.heads, 4)
    assert per_layer(NARROW, layout, "ring") == [formula.ring] * 4
    assert per_layer(NARROW, layout, "ulysses") == [formula.ulysses] * 4
    assert per_layer(NARROW, layout, "text") == [formula.text] * 4
    _, rest = tensor_parallel_formulas(NARROW, layout)
    assert per_layer(NARROW, layout, "tp") == [formula.tensor + rest] * 4


@pytest.mark.parametrize("layout", ["pp2", _slow("tp2-sp-pp2")])
def test_pipeline_boundary(layout: str) -> None:
    """Both ways the hidden state, and apart from it text, timestep and modulation, once for each micro-batch."""
    spec = replace(NARROW, packs_per_step=2)
    tp, width = parse_layout(layout).tp, spec.model.width
    boundary = 2 * pipeline_bytes(spec.tokens // tp, width, 4)
    conditioning = 2 * pipeline_bytes(0, width, 4, extra_rows=TEXT_TOKENS + ROWS + 6 * ROWS)
    for rank, sent in enumerate(counted(spec, layout)):
        assert total(sent, "pipeline", f"{spec.tokens // tp}x{width}") == boundary
        floats = [total(sent, "pipeline", shape) for shape in (f"10x{width}", f"4x{width}", f"4x6x{width}")]
        assert sum(floats) == conditioning
        # forward also the pack's lengths, grids and which tokens are given, and once the tensors' shapes
        rest = total(sent, "pipeline") - boundary - conditioning
        assert rest == (2 * (2 * 3 * 8 + 3 * 8 + spec.tokens) + 1024 if rank < tp else 0)


@pytest.mark.parametrize(
    ("layout", "inside"),
    [
        _slow("dp2-zero0", ""),
        ("dp2-zero1", ""), _slow("dp2-zero1", "merged_gradients"), _slow("dp4-zero1", ""),
        ("dp2-zero2", ""), ("dp2-zero3", "nothing_kept"),
    ],
)  # fmt: skip
def test_zero_step(layout: str, inside: str) -> None:
    """Two micro-steps; beside the parameters there are a few scalars for norms and the loss."""
    mesh = parse_layout(layout)
    dp = mesh.dp or 1
    spec = replace(NARROW, packs_per_step=2 * dp)
    formula = zero_bytes(num_parameters(spec), mesh.zero, 4, dp, 2, reduce_scatter=inside != "merged_gradients")
    for sent in counted(spec, layout, inside):
        assert total(sent, "data") == pytest.approx(formula, rel=0.01)
        assert total(sent, "data") == total(sent)


@pytest.mark.parametrize(
    ("layout", "inside"),
    [("dp2-zero1", ""), _slow("dp2-zero2", ""), _slow("dp2-zero3", "nothing_kept")],
)
def test_zero_in_bf16_sends_two_bytes_an_element(layout: str, inside: str) -> None:
    """Also stage 1, for which DeepSpeed would take an optimizer that sends gradients to every rank."""
    spec, stage = replace(NARROW, packs_per_step=2, precision="bf16"), parse_layout(layout).zero
    formula = zero_bytes(num_parameters(spec), stage, 2, 2)
    assert [total(sent, "data") for sent in counted(spec, layout, inside)] == pytest.approx([formula] * 2, rel=0.01)


@pytest.mark.slow
def test_gradients_sent_to_their_rank_alone_are_those_sent_to_all() -> None:
    spec = replace(NARROW, packs_per_step=4, steps=2)
    reduced = Pool().run(spec, "dp2-zero1", 2)
    merged = Pool().run(spec, "dp2-zero1", 2, f"{__name__}:merged_gradients")
    assert [record.grad_norms for record in reduced] == [record.grad_norms for record in merged]
    for one, other in zip(reduced, merged, strict=True):
        for piece, expected in zip(one.pieces, other.pieces, strict=True):
            assert torch.equal(piece.values, expected.values), piece.name


def test_counting_changes_nothing() -> None:
    spec = replace(NARROW, packs_per_step=2)
    plain, watched = (Pool().run(spec, "tp2-sp", 2, count_bytes=count) for count in (False, True))
    assert [_values(record) for record in plain] == [_values(record) for record in watched]
    assert plain[0].sent_bytes is None


def _values(record: Record) -> tuple[Any, ...]:
    return record.losses, record.grad_norms, [float(piece.values.double().sum()) for piece in record.pieces]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dp2-zero0", "tp2"])
def test_muon_sends_each_element_to_its_matrix_and_back_once(layout: str) -> None:
    """Of two ranks one has half of a matrix that the other computes; or none to send, and all of it to receive."""
    spec = replace(NARROW, optimizer="muon", packs_per_step=2)
    records = Pool().run(spec, layout, num_processes(parse_layout(layout)), count_bytes=True)
    elements = sum(
        parameter.numel() for name, parameter in DiT(spec.model, LocalLayers()).named_parameters() if num_matrices(name)
    )
    found = sum(
        num_bytes for record in records for key, num_bytes in (record.sent_bytes or {}).items()
        if "/all_to_all/between/" in key
    )  # fmt: skip
    assert found == elements * BYTES["fp32"]
