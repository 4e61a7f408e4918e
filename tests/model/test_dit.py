"""The model's own properties: conditioning, recomputation, and that nothing but a sample's own inputs reaches it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.dit import DiT
from megavideo.model.init import init_weights
from megavideo.model.layers import LocalLayers
from megavideo.types import Grid, PackedBatch
from tests.model.packs import make_pack

ADALN = ModelConfig(layers=2, width=48, ffn=64, heads=2, latent_channels=4, text_dim=12, time_dim=16)
ADALN_ZERO = dataclasses.replace(ADALN, modulation="adaln_zero")
BOTH = pytest.mark.parametrize("config", [ADALN, ADALN_ZERO], ids=["adaln", "adaln_zero"])
GRIDS = (Grid(3, 4, 4), Grid(1, 5, 6), Grid(2, 3, 4))
NUM_REAL = sum(grid.num_tokens for grid in GRIDS)
Order = tuple[int, ...]


def make_model(config: ModelConfig, *, recompute: RecomputeConfig | None = None, random: bool = True) -> DiT:
    """A model with its starting weights, or with all weights random so that nothing is hidden by a zero."""
    model = DiT(config, LocalLayers(), recompute=recompute)
    init_weights(model, seed=1)
    if random:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def make_batch(order: Order = (0, 1, 2), config: ModelConfig = ADALN) -> PackedBatch:
    """The samples in an order, with padding of tokens, text and segments."""
    generator = torch.Generator().manual_seed(4)
    tokens = [torch.randn(grid.num_tokens, config.patch_dim, generator=generator) for grid in GRIDS]
    texts = [torch.randn(2 + 3 * i, config.text_dim, generator=generator) for i in range(len(GRIDS))]
    return make_pack(
        [GRIDS[i] for i in order],
        [texts[i] for i in order],
        [tokens[i] for i in order],
        [100.0 + 300.0 * i for i in order],
        num_tokens=NUM_REAL + 10,
        num_segments=5,
        text_tokens=20,
    )


def loss_weight(order: Order, config: ModelConfig = ADALN) -> torch.Tensor:
    """A weight for each output, which belongs to the sample."""
    generator = torch.Generator().manual_seed(5)
    parts = [torch.randn(grid.num_tokens, config.patch_dim, generator=generator) for grid in GRIDS]
    return torch.cat([parts[i] for i in order])


def gradients(model: DiT, batch: PackedBatch, order: Order = (0, 1, 2)) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Outputs of the real tokens, and the gradient of their weighted sum in every parameter."""
    model.zero_grad()
    out = model(batch)[:NUM_REAL]
    (out * loss_weight(order)).sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@BOTH
def test_output_is_zero_at_the_start(config: ModelConfig) -> None:
    out = make_model(config, random=False)(make_batch())
    assert out.shape == (NUM_REAL + 10, config.patch_dim)
    assert not out.any()


@BOTH
def test_gradients_reach_every_parameter(config: ModelConfig) -> None:
    model = make_model(dataclasses.replace(config, fps_conditioning=True, place_embedding=True))
    _, grads = gradients(model, make_batch())
    assert grads.keys() == dict(model.named_parameters()).keys()
    for name, grad in grads.items():
        assert torch.isfinite(grad).all(), name
        assert float(grad.norm()) > 0, name


def test_adaln_zero_opens_its_gates_by_training() -> None:
    """At the start the projections are zero, so that blocks add no branch, and the head learns first."""
    model = make_model(ADALN_ZERO, random=False)
    for block in model.blocks.values():
        assert not block.modulation.weight.any()
    _, grads = gradients(model, make_batch())
    assert grads["head.proj.weight"].any()
    with torch.no_grad():
        model.head.proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    _, grads = gradients(model, make_batch())
    assert grads["blocks.0.modulation.weight"].any()
    assert not grads["blocks.0.ffn.down.weight"].any()


def test_frame_rate_is_seen_only_where_it_is_asked_for() -> None:
    slow = make_batch()
    fast = dataclasses.replace(slow, fps=slow.fps * 3)
    conditioned = make_model(dataclasses.replace(ADALN, fps_conditioning=True))
    assert not torch.allclose(conditioned(slow)[:NUM_REAL], conditioned(fast)[:NUM_REAL], atol=1e-3)
    plain = make_model(ADALN)
    assert torch.equal(plain(slow), plain(fast))


def test_place_is_seen_only_where_it_is_asked_for() -> None:
    """Equal tokens without text differ by their place alone: relative positions cannot tell the first from the last."""
    grid = Grid(1, 1, 9)
    pack = make_pack([grid], [torch.ones(1, 12)], [torch.ones(grid.num_tokens, ADALN.patch_dim)], [500.0])
    plain = make_model(ADALN)(pack)
    torch.testing.assert_close(plain, plain[:1].expand_as(plain))
    placed = make_model(dataclasses.replace(ADALN, place_embedding=True))(pack)
    assert not torch.allclose(placed[0], placed[-1], atol=1e-3)


@BOTH
def test_recomputing_changes_nothing(config: ModelConfig) -> None:
    batch = make_batch()
    kept, kept_grads = gradients(make_model(config), batch)
    again, again_grads = gradients(make_model(config, recompute=RecomputeConfig(kind="full")), batch)
    assert torch.equal(kept, again)
    assert kept_grads.keys() == again_grads.keys()
    for name, grad in kept_grads.items():
        torch.testing.assert_close(again_grads[name], grad, rtol=1e-6, atol=1e-7)


@BOTH
def test_given_tokens_are_at_timestep_zero(config: ModelConfig) -> None:
    model, noisy = make_model(config), make_batch()
    all_given = dataclasses.replace(noisy, condition_mask=torch.ones_like(noisy.condition_mask))
    at_zero = dataclasses.replace(noisy, timestep=torch.zeros_like(noisy.timestep))
    torch.testing.assert_close(model(all_given)[:NUM_REAL], model(at_zero)[:NUM_REAL])
    assert not torch.allclose(model(noisy)[:NUM_REAL], model(at_zero)[:NUM_REAL], atol=1e-3)
    mask = noisy.condition_mask.clone()
    mask[: GRIDS[0].h * GRIDS[0].w] = True
    first_frame = model(dataclasses.replace(noisy, condition_mask=mask))
    later = slice(GRIDS[0].num_tokens, NUM_REAL)
    torch.testing.assert_close(first_frame[later], model(noisy)[later])
    assert not torch.allclose(first_frame[: later.start], model(noisy)[: later.start], atol=1e-3)


@BOTH
def test_padding_influences_nothing(config: ModelConfig) -> None:
    model, batch = make_model(config), make_batch()
    tokens, text, timestep, fps = (t.clone() for t in (batch.tokens, batch.text, batch.timestep, batch.fps))
    tokens[NUM_REAL:] = -30.0
    text[int(batch.cu_seqlens_text[-1]) :] = 40.0
    timestep[len(GRIDS) :] = 999.0
    fps[len(GRIDS) :] = 60.0
    out, grads = gradients(model, batch)
    other = dataclasses.replace(batch, tokens=tokens, text=text, timestep=timestep, fps=fps)
    other_out, other_grads = gradients(model, other)
    assert torch.equal(out, other_out)
    for name, grad in grads.items():
        assert torch.equal(grad, other_grads[name]), name


@BOTH
def test_order_in_the_pack_does_not_matter(config: ModelConfig) -> None:
    model = make_model(config)
    out, grads = gradients(model, make_batch())
    order = (2, 0, 1)
    turned, turned_grads = gradients(model, make_batch(order), order)
    parts = out.split([grid.num_tokens for grid in GRIDS])
    torch.testing.assert_close(turned, torch.cat([parts[i] for i in order]), rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        error = float((turned_grads[name] - grad).norm() / grad.norm())
        assert error < 1e-4, name
