"""Blocks as compiled code: one graph, the gradients of plain code, no new compilation for packs of other lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import _dynamo as dynamo
from torch._dynamo.testing import CompileCounter

from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.attention.operator import Attention
from megavideo.model.block import Conditioning
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.model.rope import rotary_table, rotate
from megavideo.parallel.attention.stand_in import StandIn
from megavideo.types import Grid
from tests.model.packs import make_pack
from tests.model.test_recompute import CONFIG, make_model

KINDS = {
    "none": None,
    "selective": RecomputeConfig(kind="selective", parts=("self_attention", "cross_attention", "ffn")),
    "gelu": RecomputeConfig(kind="selective", parts=("gelu",)),
    "full": RecomputeConfig(kind="full"),
}
PACKS = ((Grid(2, 3, 4), Grid(1, 5, 6)), (Grid(1, 4, 4), Grid(3, 3, 4), Grid(1, 2, 3)), (Grid(3, 4, 5),))


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """No compiled code from other tests, and none for them."""
    dynamo.reset()
    yield
    dynamo.reset()


def model_of(kind: str) -> DiT:
    """Of one block, whose attention is an operator that leaves NaN in all it may."""
    return make_model(KINDS[kind], part=range(1), layers=LocalLayers(Attention(StandIn())))


def inputs_of(model: DiT, grids: Sequence[Grid]) -> tuple[torch.Tensor, Conditioning]:
    """What the blocks are given of a pack of these clips; all packs have the same sizes."""
    draw = torch.Generator().manual_seed(len(grids))
    tokens = [torch.randn(grid.num_tokens, CONFIG.patch_dim, generator=draw) for grid in grids]
    texts = [torch.randn(2 + i, CONFIG.text_dim, generator=draw) for i in range(len(grids))]
    timesteps = [100.0 * (i + 1) for i in range(len(grids))]
    pack = make_pack(grids, texts, tokens, timesteps, num_tokens=96, num_segments=4, text_tokens=20)
    assert model.embed is not None
    hidden = model.embed(pack)
    cond = model.conditioning(hidden)
    own = {
        name: value.detach() for name in ("time", "modulation", "text") if (value := getattr(cond, name)) is not None
    }
    return hidden.x.detach().requires_grad_(), dataclasses.replace(cond, **own)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_one_graph_for_packs_of_all_lengths(kind: str) -> None:
    model = model_of(kind)
    packs = [inputs_of(model, grids) for grids in PACKS]
    found = dynamo.explain(model.run_blocks)(*packs[0])
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model.run_blocks, backend=counter)
    for pack in packs:
        compiled(*pack).square().sum().backward()
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_have_the_gradients_of_plain_ones(kind: str) -> None:
    model = model_of(kind)
    compiled = torch.compile(model.run_blocks, backend="aot_eager", fullgraph=True)
    for grids in PACKS[:2]:
        x, cond = inputs_of(model, grids)
        given = [x, *model.blocks.parameters()]
        real = sum(grid.num_tokens for grid in grids)
        expected, out = model.run_blocks(x, cond)[:real], compiled(x, cond)[:real]
        torch.testing.assert_close(out, expected)
        wanted = torch.autograd.grad(expected.square().sum(), given)
        assert all(bool(grad.any()) for grad in wanted)
        for ours, theirs in zip(torch.autograd.grad(out.square().sum(), given), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compiled_rotation_has_a_gradient(dtype: torch.dtype) -> None:
    """In every precision: a cast that changes nothing, as the last thing a Function does, loses it (torch 2.11)."""
    table = rotary_table(torch.arange(12).reshape(4, 3), 12, dtype)
    heads = torch.randn(4, 2, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 2, 12, dtype=dtype)
    expected = torch.autograd.grad(rotate(heads, table), heads, weight)[0]
    compiled = torch.compile(rotate, backend="aot_eager", fullgraph=True)
    assert torch.equal(torch.autograd.grad(compiled(heads, table), heads, weight)[0], expected)
