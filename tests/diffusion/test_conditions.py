"""Conditioning tasks and their masks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from megavideo.config.schema.diffusion import ConditionConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.data.patches import patchify, unpatchify
from megavideo.diffusion.conditions import condition_mask, draw_mask, draw_task, drops_text, given_channels
from megavideo.diffusion.randomness import SampleKey
from megavideo.types import Grid

TASKS = ("text", "image_to_video", "extension", "interpolation", "inpainting")
GRIDS = (Grid(5, 4, 6), Grid(2, 3, 3), Grid(1, 4, 4), Grid(1, 1, 1), Grid(2, 1, 1), Grid(9, 1, 2))


def key(number: int) -> SampleKey:
    return SampleKey(0, f"s{number}", 0)


def mask_of(task: str, grid: Grid, number: int = 0) -> torch.Tensor:
    return condition_mask(task, key(number), grid).view(grid.t, grid.h, grid.w)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("grid", GRIDS)
def test_masks_fit_the_grid_and_leave_something_to_learn(task: str, grid: Grid) -> None:
    for number in range(20):
        mask = condition_mask(task, key(number), grid)
        assert mask.shape == (grid.num_tokens,) and mask.dtype == torch.bool
        assert not mask.all()
        assert torch.equal(mask, condition_mask(task, key(number), grid))


def test_text_gives_nothing() -> None:
    assert not mask_of("text", Grid(5, 4, 6)).any()


def test_image_to_video_gives_the_first_frame() -> None:
    mask = mask_of("image_to_video", Grid(5, 4, 6))
    assert mask[0].all() and not mask[1:].any()


def test_interpolation_gives_the_ends() -> None:
    mask = mask_of("interpolation", Grid(5, 4, 6))
    assert mask[0].all() and mask[-1].all() and not mask[1:-1].any()


def test_extension_gives_a_first_run_of_up_to_half() -> None:
    lengths = set()
    for number in range(200):
        mask = mask_of("extension", Grid(9, 2, 2), number)
        given = int(mask[:, 0, 0].sum())
        assert mask[:given].all() and not mask[given:].any()
        lengths.add(given)
    assert lengths == {1, 2, 3, 4}


def test_inpainting_leaves_a_box_that_stays() -> None:
    corners = set()
    for number in range(200):
        hidden = ~mask_of("inpainting", Grid(3, 5, 8), number)
        assert torch.equal(hidden[0], hidden[1]) and torch.equal(hidden[0], hidden[2])
        rows, columns = hidden[0].any(dim=1).nonzero().flatten(), hidden[0].any(dim=0).nonzero().flatten()
        assert len(rows) == 3 and len(columns) == 4
        assert hidden[0].sum() == 12  # a full box
        corners.add((int(rows[0]), int(columns[0])))
    assert corners == {(y, x) for y in range(3) for x in range(5)}


def test_tasks_are_drawn_by_weight() -> None:
    config = ConditionConfig(text=0.4, image_to_video=0.3, extension=0.2, interpolation=0.0, inpainting=0.1)
    counts = Counter(draw_task(config, key(number), Grid(5, 4, 4)) for number in range(2000))
    assert counts["interpolation"] == 0
    for task, share in (("text", 0.4), ("image_to_video", 0.3), ("extension", 0.2), ("inpainting", 0.1)):
        assert counts[task] / 2000 == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)
    assert Counter(draw_task(ConditionConfig(), key(n), Grid(5, 4, 4)) for n in range(50)) == {"text": 50}


def test_images_are_never_given_their_only_frame() -> None:
    config = ConditionConfig(text=0.0, image_to_video=1.0, interpolation=1.0, inpainting=0.0)
    image = Grid(1, 4, 4)
    assert {draw_task(config, key(number), image) for number in range(50)} == {"text"}
    assert not any(draw_mask(config, key(number), image).any() for number in range(50))


def test_text_dropout_share() -> None:
    dropped = sum(drops_text(0.2, SampleKey(0, f"s{i % 40}", i // 40)) for i in range(2000))
    assert dropped / 2000 == pytest.approx(0.2, abs=4 * (0.16 / 2000) ** 0.5)
    assert not any(drops_text(0.0, key(i)) for i in range(200))
    assert all(drops_text(1.0, key(i)) for i in range(200))


@pytest.mark.parametrize("task", ["image_to_video", "interpolation"])
def test_given_channels_are_laid_out_as_wan_has_them(task: str) -> None:
    """A channel of the mask for each frame of a latent one, of which the first holds only one; then latents."""
    config = ModelConfig(layers=1, width=16, ffn=16, heads=2, latent_channels=6, text_dim=8, given_channels=10)
    told = torch.randn(6, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    grid = Grid(3, 2, 4)
    found = unpatchify(given_channels(patchify(told, config.patch), task, grid, config), grid, config.patch)
    frames = torch.zeros(12)  # of which the first three stand for the one that the first latent frame holds
    frames[:4] = 1.0
    if task == "interpolation":
        frames[-1] = 1.0
    mask = frames.view(3, 4).T[:, :, None, None].expand(4, 3, 4, 8)
    assert torch.equal(found, torch.cat([mask, told]))


def test_a_mask_of_given_channels_tells_frames_within_a_token() -> None:
    """Where a token holds two latent frames the mask is that of each, not of the token."""
    config = ModelConfig(
        layers=1, width=16, ffn=16, heads=2, latent_channels=3, text_dim=8, given_channels=7, patch=(2, 1, 1)
    )
    told = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    grid = Grid(2, 2, 2)
    found = unpatchify(given_channels(patchify(told, config.patch), "interpolation", grid, config), grid, config.patch)
    assert found[:4, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert torch.equal(found[4:], told)
