"""Recomputation keeps less and changes no number, whichever blocks and parts it takes and wherever inputs wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.dit import DiT, Hidden
from megavideo.model.layers import LocalLayers
from megavideo.model.recompute import KEEP_ALL, WHOLE, BlockRecompute, SavedTensors, saved_bytes
from megavideo.types import Grid, PackedBatch
from tests.model.packs import make_pack

CONFIG = ModelConfig(layers=4, width=48, ffn=192, heads=4, latent_channels=4, text_dim=12, time_dim=16)
GRIDS = (Grid(3, 4, 4), Grid(1, 5, 6), Grid(2, 3, 4))
TOKENS = sum(grid.num_tokens for grid in GRIDS)
BRANCHES = ("self_attention", "cross_attention", "ffn")

CASES = {
    "none": None,
    "gelu": RecomputeConfig(kind="selective", parts=("gelu",)),
    "self_attention": RecomputeConfig(kind="selective", parts=("self_attention",)),
    "cross_attention": RecomputeConfig(kind="selective", parts=("cross_attention",)),
    "ffn": RecomputeConfig(kind="selective", parts=("ffn",)),
    "attention and gelu": RecomputeConfig(kind="selective", parts=("self_attention", "gelu")),
    "branches": RecomputeConfig(kind="selective", parts=BRANCHES),
    "branches of half": RecomputeConfig(kind="selective", parts=BRANCHES, layers=2),
    "full": RecomputeConfig(kind="full"),
    "full of half": RecomputeConfig(kind="full", layers=2),
    "branches offloaded": RecomputeConfig(kind="selective", parts=BRANCHES, offload=True),
    "gelu offloaded": RecomputeConfig(kind="selective", parts=("gelu",), offload=True),
    "full offloaded": RecomputeConfig(kind="full", offload=True),
}


def make_batch(dtype: torch.dtype = torch.float32) -> PackedBatch:
    """Three clips."""
    generator = torch.Generator().manual_seed(4)
    tokens = [torch.randn(grid.num_tokens, CONFIG.patch_dim, generator=generator).to(dtype) for grid in GRIDS]
    texts = [torch.randn(2 + 3 * i, CONFIG.text_dim, generator=generator).to(dtype) for i in range(len(GRIDS))]
    return make_pack(GRIDS, texts, tokens, [100.0, 400.0, 700.0])


def make_model(
    recompute: RecomputeConfig | None,
    dtype: torch.dtype = torch.float32,
    *,
    modulation: str = "adaln",
    part: range | None = None,
    layers: LocalLayers | None = None,
) -> DiT:
    """A model, or a stage of it, in which every weight depends on its name alone and none is zero."""
    config = ModelConfig(**{**vars(CONFIG), "modulation": modulation})
    model = DiT(config, layers or LocalLayers(), part=part, recompute=recompute)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(sum(name.encode()))
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def gradients(model: DiT, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The loss and the gradient of every parameter."""
    out = model(make_batch(dtype)).float()
    loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).square().mean()
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    return {"loss": loss.detach()} | {name: grad for name, grad in grads.items() if grad is not None}


def bytes_of(case: str, dtype: torch.dtype = torch.float32) -> int:
    """What one forward pass keeps."""
    model, batch = make_model(CASES[case], dtype), make_batch(dtype)
    return saved_bytes(lambda: model(batch), model.parameters())


@pytest.mark.parametrize("modulation", ["adaln", "adaln_zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_number_changes(dtype: torch.dtype, modulation: str) -> None:
    expected = gradients(make_model(None, dtype, modulation=modulation), dtype)
    assert all(float(grad.float().norm()) > 0 for grad in expected.values())
    for case, recompute in CASES.items():
        for name, value in gradients(make_model(recompute, dtype, modulation=modulation), dtype).items():
            assert torch.equal(value, expected[name]), (case, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_more_recomputation_keeps_less(dtype: torch.dtype) -> None:
    kept = {case: bytes_of(case, dtype) for case in CASES}
    for more, less in [
        ("none", "gelu"),
        ("none", "self_attention"),
        ("none", "cross_attention"),
        ("gelu", "ffn"),
        ("self_attention", "attention and gelu"),
        ("attention and gelu", "branches"),
        ("none", "branches of half"),
        ("branches of half", "branches"),
        ("branches", "full"),
        ("none", "full of half"),
        ("full of half", "full"),
        ("branches", "branches offloaded"),
        ("gelu", "gelu offloaded"),
        ("full", "full offloaded"),
    ]:
        assert kept[more] > kept[less], (more, less)
    # but for the conditioning, which all blocks share
    assert 2 * kept["full of half"] == pytest.approx(kept["none"] + kept["full"], rel=0.01)
    item = torch.finfo(dtype).bits // 8
    assert kept["full"] - kept["full offloaded"] == CONFIG.layers * TOKENS * CONFIG.width * item
    assert kept["none"] - kept["gelu"] == CONFIG.layers * TOKENS * CONFIG.ffn * item


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, [0]), (2, [0, 4]), (3, [0, 3, 5]), (7, [0, 1, 2, 3, 4, 5, 6]), (None, list(range(7)))]
)
def test_layers_are_spread_evenly(count: int | None, chosen: list[int]) -> None:
    config = RecomputeConfig(kind="full", layers=count)
    shares = [BlockRecompute.of(config, number, 7) for number in range(7)]
    assert [number for number, share in enumerate(shares) if share.names == {WHOLE}] == chosen
    assert all(share == KEEP_ALL for number, share in enumerate(shares) if number not in chosen)


def test_stages_recompute_what_the_whole_model_does() -> None:
    recompute = RecomputeConfig(kind="full", layers=2)
    whole = make_model(recompute)
    stages = [make_model(recompute, part=part) for part in (range(1), range(1, 4))]
    shares = {name: share for stage in stages for name, share in stage.recompute.items()}
    assert shares == whole.recompute
    assert [name for name, share in shares.items() if share.names] == ["0", "2"]
    given: PackedBatch | Hidden | torch.Tensor = make_batch()
    for stage in stages:
        assert not isinstance(given, torch.Tensor)
        given = stage.stage(given)
    assert isinstance(given, torch.Tensor)
    expected = whole(make_batch())
    assert torch.equal(given, expected)
    given.square().mean().backward()
    expected.square().mean().backward()
    of_whole = dict(whole.named_parameters())
    for stage in stages:
        for name, parameter in stage.named_parameters():
            got, wanted = parameter.grad, of_whole[name].grad
            assert got is not None and wanted is not None
            assert torch.equal(got, wanted), name


class Entered(LocalLayers):
    """Layers whose precision multiplies every linear layer's output while it is entered, and counts its entries."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0
        self.depth = 0

    def column(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> torch.nn.Module:
        layers, linear = self, super().column(in_dim, out_dim, blocks=blocks)
        linear.register_forward_hook(lambda _module, _given, out: out * (0.5 if layers.depth else 1.0))
        return linear

    def precision(self) -> AbstractContextManager[None]:
        return self._enter()

    @contextmanager
    def _enter(self) -> Iterator[None]:
        self.entries += 1
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


@pytest.mark.parametrize("case", list(CASES))
def test_recomputation_runs_in_the_same_precision(case: str) -> None:
    layers, plain = Entered(), Entered()
    model = make_model(CASES[case], layers=layers)
    got, expected = gradients(model), gradients(make_model(None, layers=plain))
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    assert layers.depth == 0
    assert (layers.entries > plain.entries) == (case != "none")


def test_nothing_is_kept_without_gradients() -> None:
    model, batch = make_model(CASES["full offloaded"]), make_batch()
    with torch.no_grad():
        assert saved_bytes(lambda: model(batch), model.parameters()) == 0


def test_kept_bytes_are_those_of_the_graph() -> None:
    x = torch.randn(10, 3, requires_grad=True)
    weight = torch.randn(3, 3, requires_grad=True)
    square = 10 * 3 * 4
    assert saved_bytes(lambda: x.sum()) == 0
    assert saved_bytes(lambda: (x * x).exp().sum()) == 2 * square  # x once, and exp's result
    assert saved_bytes(lambda: (x @ weight).sum()) == square + 3 * 3 * 4
    assert saved_bytes(lambda: (x @ weight).sum(), [weight]) == square
    assert saved_bytes(lambda: x[:5].exp()[:2].exp().sum()) == square // 2 + square // 5
    with SavedTensors() as saved:
        out = x.exp().sum()
    assert saved.num_bytes == square
    out.backward()
    assert saved.num_bytes == 0
