"""Patches and packed batches: the inverse, the order, static shapes and zero padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megavideo.data.patches import patchify, token_grid, unpatchify
from megavideo.data.plan.packing import PackLimits
from megavideo.data.stream.batch import assemble
from megavideo.data.stream.shards import LatentSample
from megavideo.errors import DataError
from megavideo.types import Grid, PackSegment

LIMITS = PackLimits(40, 16, 4)
PATCH = (1, 2, 2)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 2, 4), (3, 2, 1)])
def test_unpatchify_is_the_inverse(patch: tuple[int, int, int]) -> None:
    latent = torch.randn(5, 6, 4, 8)
    grid = token_grid(Grid(6, 4, 8), patch)
    tokens = patchify(latent, patch)
    assert tokens.shape == (grid.num_tokens, 5 * patch[0] * patch[1] * patch[2])
    assert torch.equal(unpatchify(tokens, grid, patch), latent)


def test_order_of_tokens_and_of_numbers_in_one() -> None:
    latent = torch.randn(3, 2, 4, 6)
    tokens = patchify(latent, PATCH)
    for t, y, x in ((0, 0, 0), (1, 1, 2), (0, 1, 1)):
        token = tokens[t * 6 + y * 3 + x].view(1, 2, 2, 3)
        part = latent[:, t : t + 1, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert torch.equal(token.permute(3, 0, 1, 2), part)


def make(index: int, latent: Grid, text_tokens: int) -> tuple[PackSegment, LatentSample]:
    generator = torch.Generator().manual_seed(index)
    grid = token_grid(latent, PATCH)
    sample = LatentSample(
        torch.randn(4, latent.t, latent.h, latent.w, generator=generator),
        torch.randn(text_tokens, 8, generator=generator),
        float(index + 1),
    )
    return PackSegment(index, f"s{index}", 10 + index, grid, text_tokens), sample


def test_shapes_are_static_and_padding_is_zero() -> None:
    made = [make(0, Grid(2, 4, 6), 3), make(1, Grid(1, 8, 4), 5)]
    segments, samples = [m[0] for m in made], [m[1] for m in made]
    batch = assemble(segments, samples, PATCH, LIMITS)
    assert batch.tokens.shape == (40, 16) and batch.text.shape == (16, 8)
    assert batch.cu_seqlens.tolist() == [0, 12, 20, 20, 20] and batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens_text.tolist() == [0, 3, 8, 8, 8]
    assert batch.grid.tolist() == [[2, 2, 3], [1, 4, 2], [0, 0, 0], [0, 0, 0]]
    assert torch.equal(batch.tokens[:12], patchify(samples[0].latent, PATCH))
    assert torch.equal(batch.tokens[12:20], patchify(samples[1].latent, PATCH))
    assert torch.equal(batch.text[3:8], samples[1].text)
    assert not batch.tokens[20:].any() and not batch.text[8:].any()
    assert batch.fps.tolist() == [1.0, 2.0, 0.0, 0.0] and batch.timestep.tolist() == [0.0] * 4
    assert batch.sample_ids == ("s0", "s1", "", "") and batch.visits == (10, 11, 0, 0)
    assert not batch.condition_mask.any()
    other = assemble(segments[:1], samples[:1], PATCH, LIMITS)
    for field in dataclasses.fields(batch):
        one, two = getattr(batch, field.name), getattr(other, field.name)
        assert (one is None and two is None) or len(one) == len(two), field.name


def test_a_sample_that_is_not_as_the_manifest_says() -> None:
    segment, sample = make(0, Grid(2, 4, 6), 3)
    wrong = dataclasses.replace(segment, grid=Grid(3, 2, 3))
    with pytest.raises(DataError, match="sample s0: 12 tokens in the shard, 18 in the manifest"):
        assemble([wrong], [sample], PATCH, LIMITS)
