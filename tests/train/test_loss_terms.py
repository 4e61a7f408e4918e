"""Further terms of the loss: what takes part, what is decoded, gradients through decoders, and every layout alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.config.schema.loss_terms import LossTermsConfig
from megavideo.diffusion.conditions import draw_mask
from megavideo.diffusion.objective import build_objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import draw_level
from megavideo.encoders.video.autoencoder import VideoAutoencoder
from megavideo.encoders.video.loaded import build_loaded
from megavideo.parallel.layers import collectives
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.parity.oracle import run_oracle
from megavideo.parity.packs import step_input
from megavideo.parity.plain_terms import parity_autoencoder
from megavideo.parity.pool import Pool
from megavideo.parity.run import LIMITS, compare_layout
from megavideo.parity.spec import ParitySpec
from megavideo.train.loss.loss_terms import LossTerms, build_loss_terms
from megavideo.train.loss.term_labels import TermLabels, choose_windows, has_terms, term_labels
from megavideo.types import Grid, PackedBatch, PackSegment
from tests.encoders.tiny_models import make_wan

TEMPORAL = ("temporal_consistency", "motion_smoothness")
SPEC = ParitySpec(loss_terms=(*TEMPORAL, "perceptual"), steps=1, num_layers=2, packs_per_step=4)
ALONE = ProcessMesh(rank=0, tp=1, ulysses=1, ring=1, dp=1, pp=1)
CPU = torch.device("cpu")
NO_GROUPS: Any = None  # one process has no use for them


def segments(count: int, first: int = 0) -> list[PackSegment]:
    return [PackSegment(i, f"s{i}", i % 3, Grid(1 + i % 4, 2, 3), 2) for i in range(first, first + count)]


def perceptual(clips: int, frames: int = 2) -> DiffusionConfig:
    terms = LossTermsConfig(perceptual=1.0, perceptual_clips=clips, perceptual_frames=frames)
    return DiffusionConfig(terms=terms)


# what takes part


def labels_by_visit(spec: ParitySpec) -> dict[tuple[str, int], tuple[torch.Tensor, float]]:
    found = {}
    for batch in step_input(spec, 0, 0, 1).batches:
        bounds = batch.pack.cu_seqlens.tolist()
        assert batch.terms is not None
        assert not batch.terms.slope[bounds[-1] :].any() and bool((batch.terms.following[bounds[-1] :] == -1).all())
        for i, sample_id in enumerate(batch.pack.sample_ids):
            if sample_id:
                slope = batch.terms.slope[bounds[i] : bounds[i + 1]]
                found[sample_id, batch.pack.visits[i]] = (slope, float(batch.pack.timestep[i]))
    return found


def test_given_tokens_and_clips_with_more_noise_take_no_part() -> None:
    config, seen = SPEC.diffusion, {"given": 0, "noisy": 0, "free": 0}
    objective = build_objective(config)
    for pack in range(SPEC.packs_per_step):
        for i, grid in enumerate(SPEC.grids(pack)):
            key = SampleKey(SPEC.seed, f"pack{pack}/{i}", 0)
            slope, timestep = labels_by_visit(SPEC)[key.sample_id, 0]
            assert timestep == pytest.approx(1000 * draw_level(config, key, grid), rel=1e-5)
            mask = draw_mask(config.conditions, key, grid)
            too_noisy = timestep > 1000 * config.terms.max_level
            expected = torch.zeros_like(slope) if too_noisy else objective.slope(timestep) * (~mask).float()
            assert torch.allclose(slope, expected)
            seen["given"] += int(mask.sum())
            seen["noisy"] += too_noisy
            seen["free"] += int((expected != 0).sum())
    assert min(seen.values()) > 0


def test_labels_belong_to_the_sample_and_not_to_its_pack() -> None:
    one, other = labels_by_visit(SPEC), labels_by_visit(replace(SPEC, tokens=130, pack="1x2x3+5x3x3+3x2x3"))
    assert one.keys() & other.keys()
    twice = labels_by_visit(SPEC)
    assert all(torch.equal(one[key][0], twice[key][0]) for key in one)


def test_without_terms_a_batch_carries_nothing() -> None:
    assert all(batch.terms is None for batch in step_input(replace(SPEC, loss_terms=()), 0, 0, 1).batches)
    assert not has_terms(LossTermsConfig(perceptual_clips=3, max_level=0.5))
    assert build_loss_terms(LossTermsConfig(), (1, 2, 2), ALONE, NO_GROUPS, None, CPU) is None


# what is decoded


@pytest.mark.parametrize("clips", [1, 3, 100])
def test_windows_are_chosen_by_sample_and_not_by_pack(clips: int) -> None:
    config = perceptual(clips)
    everyone = segments(40)
    whole = choose_windows([everyone], config, 1, 0, 500)
    for packs in ([everyone[:7], everyone[7:]], [list(reversed(everyone))], [[s] for s in everyone]):
        assert choose_windows(packs, config, 1, 0, 500) == whole
    quiet = [s for s in everyone if draw_level(config, SampleKey(0, s.sample_id, s.visit), s.grid) <= 0.7]
    assert len(whole) == min(clips, len(quiet)) and 3 < len(quiet) < 40
    assert whole.keys() <= {(s.sample_id, s.visit) for s in quiet}
    assert sum(window.share for window in whole.values()) == pytest.approx(500)
    assert choose_windows([everyone], config, 1, 1, 500).keys() != whole.keys() or clips == 100


def test_windows_lie_inside_their_clips_and_begin_anywhere() -> None:
    everyone = [PackSegment(i, f"s{i}", 0, Grid(5, 2, 3), 2) for i in range(400)]
    for frames, patch_frames, expected in ((2, 1, 2), (3, 2, 2), (1, 2, 1), (9, 1, 5)):
        windows = choose_windows([everyone], perceptual(400, frames), patch_frames, 0, 1).values()
        assert {window.frames for window in windows} == {expected}
        assert {window.begin for window in windows} == set(range(5 - expected + 1))


def test_nothing_is_chosen_where_the_term_is_off() -> None:
    assert choose_windows([segments(9)], DiffusionConfig(terms=LossTermsConfig(motion_smoothness=1.0)), 1, 0, 9) == {}


# values and gradients in one process


def make_labels(
    grids: list[Grid], width: int, config: DiffusionConfig, times: list[float]
) -> tuple[PackedBatch, torch.Tensor, TermLabels]:
    """A clean pack, its target, and labels in which every clip is decoded as a whole."""
    spans = [0, *itertools.accumulate(grid.num_tokens for grid in grids)]
    pack = PackedBatch(
        tokens=SampleKey(0, "clean", 0).normal("x", (spans[-1] + 3, width)), cu_seqlens=torch.tensor(spans),
        grid=torch.tensor([[g.t, g.h, g.w] for g in grids]), text=torch.zeros(1, 1), cu_seqlens_text=torch.tensor([0]),
        fps=torch.zeros(len(grids)), timestep=torch.tensor(times),
        condition_mask=torch.zeros(spans[-1] + 3, dtype=torch.bool),
        sample_ids=tuple(f"s{i}" for i in range(len(grids))), visits=(0,) * len(grids),
    )  # fmt: skip
    chosen = [PackSegment(i, f"s{i}", 0, grid, 1) for i, grid in enumerate(grids)]
    everywhere = replace(config, timesteps="uniform", logit_mean=None, logit_std=None)
    windows = choose_windows([chosen], everywhere, 1, 0, len(grids))
    target = SampleKey(0, "target", 0).normal("x", tuple(pack.tokens.shape))
    return pack, target, term_labels(pack, pack, grids, build_objective(config), config.terms.max_level, windows)


def made(*given: Any) -> LossTerms:
    terms = build_loss_terms(*given)
    assert terms is not None
    return terms


def test_a_perfect_prediction_has_no_terms() -> None:
    _, target, labels = make_labels([Grid(3, 2, 2), Grid(1, 2, 2)], 16, SPEC.diffusion, [300.0, 400.0])
    terms = made(SPEC.diffusion.terms, (1, 2, 2), ALONE, NO_GROUPS, parity_autoencoder(SPEC).decode_for_loss, CPU)
    assert list(terms.weights) == list(SPEC.loss_terms)
    assert terms(target, target, labels.tensors()).tolist() == [0.0, 0.0, 0.0]
    assert bool((terms(target + 0.1 * torch.randn_like(target), target, labels.tensors())[:2] > 0).all())


def make_autoencoder(kind: str, folder: Path) -> VideoAutoencoder:
    if kind == "pca":
        return parity_autoencoder(SPEC)
    return build_loaded("wan", str(make_wan(folder)), "fp32", lambda count: iter([torch.rand(3, 5, 32, 32)]))


@pytest.mark.parametrize("kind", ["pca", "wan"])
def test_the_perceptual_gradient_is_its_slope_along_any_line(tmp_path: Path, kind: str) -> None:
    autoencoder = make_autoencoder(kind, tmp_path)
    config = perceptual(9, 3)
    config = replace(config, terms=replace(config.terms, max_level=1.0))
    _, target, labels = make_labels([Grid(3, 2, 2)], 4 * autoencoder.latent_channels, config, [500.0])
    assert labels.windows.tolist() == [[0, 3, 2, 2]]
    terms = made(config.terms, (1, 2, 2), ALONE, NO_GROUPS, autoencoder.decode_for_loss, CPU)
    prediction = (target + torch.randn(target.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    value = terms(prediction, target, labels.tensors()).sum()
    (gradient,) = torch.autograd.grad(value, prediction)
    assert float(gradient[:12].abs().min()) > 0  # every number of every frame is seen
    assert not gradient[12:].any()
    line = gradient / gradient.norm()
    with torch.no_grad():
        ahead, back = (float(terms(prediction + step * line, target, labels.tensors()).sum()) for step in (2e-2, -2e-2))
    assert (ahead - back) / 4e-2 == pytest.approx(float(gradient.norm()), rel=2e-2)


@pytest.mark.parametrize("kind", ["pca", "wan"])
def test_decoding_for_the_loss_is_decoding_before_the_clamp(tmp_path: Path, kind: str) -> None:
    autoencoder = make_autoencoder(kind, tmp_path)
    latent = 0.1 * torch.randn(autoencoder.latent_channels, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = autoencoder.decode_for_loss(latent)
    assert torch.allclose(found.clamp(-1.0, 1.0), autoencoder.decode(latent), atol=1e-5)
    beyond = autoencoder.decode_for_loss(latent * 1000.0)
    assert float(beyond.abs().max()) > 1.0


# layouts


@contextmanager
def no_return_of_gradients() -> Iterator[None]:
    """Gathered errors whose gradients stay on the rank that used them."""

    def own_part(ctx: Any, *grads: Any) -> Any:
        return grads[0].chunk(ctx.group.size())[ctx.group.rank()].clone(), None

    with patch.object(collectives._Gather, "backward", staticmethod(own_part)):
        yield


def test_gradients_that_do_not_return_to_their_owner_are_caught() -> None:
    """The fault is one of the terms alone; without it the same layout passes (`tests/parity/test_matrix.py`)."""
    oracle = run_oracle(SPEC)
    plain = run_oracle(replace(SPEC, loss_terms=()))
    assert oracle.losses == plain.losses  # the error is reported as it is, whatever else is in the loss
    assert oracle.grad_norms[0] != pytest.approx(plain.grad_norms[0], rel=1e-2)
    limits = LIMITS["fp32"]
    found = compare_layout(Pool(), SPEC, oracle, "cp2-ring", f"{__name__}:no_return_of_gradients")
    assert found.loss_rel < limits.loss and found.max_grad_rel > 100 * limits.gradient
