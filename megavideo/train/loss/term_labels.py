"""What the further terms of the loss must know of a pack besides the prediction and its target.

Shape legend: N tokens of the pack, P patch width, W windows that are decoded, w all tokens of theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.config.schema.loss_terms import LossTermsConfig
from megavideo.diffusion.objective import NUM_TIMESTEPS, Objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.temporal_terms import NONE, following_tokens
from megavideo.diffusion.timesteps import draw_level
from megavideo.types import Grid, PackedBatch, PackSegment


@dataclass(frozen=True)
class Window:
    """The frames of tokens of one visit of a sample that are decoded, and what their distance counts in the step."""

    begin: int
    frames: int
    share: float


# by sample id and visit
Windows = Mapping[tuple[str, int], Window]


@dataclass(frozen=True)
class TermLabels:
    """Of a whole pack: slope [N] by which the clean token moves with the prediction, 0 where it takes no part;
    following [N] the token at the same place a frame later, -1 for none; and what is decoded: windows [W, 4] (first
    token, and t, h, w in tokens), shares [W] of their distances in the step, and their clean tokens [w, P].
    """

    slope: torch.Tensor
    following: torch.Tensor
    windows: torch.Tensor
    shares: torch.Tensor
    clean: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, in order."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def has_terms(config: LossTermsConfig) -> bool:
    """Whether any further term is in the loss."""
    return any((config.temporal_consistency, config.motion_smoothness, config.perceptual))


def choose_windows(
    packs: Sequence[Sequence[PackSegment]], config: DiffusionConfig, patch_frames: int, seed: int, loss_tokens: int
) -> Windows:
    """What is decoded of a whole step: at most `perceptual_clips` visits, chosen by hash, alike on every rank.

    Those noised more than `max_level` are passed over. The loss is a sum over tokens that `loss_tokens` divides; with
    these shares it has the mean distance of what is decoded, times its weight. `patch_frames` latent frames make a
    frame of tokens. What `shift_by_content` does is not known here: a clip that it moves past `max_level` drops out.
    """
    terms = config.terms
    if not terms.perceptual:
        return {}
    found: list[tuple[float, PackSegment]] = []
    for segment in (segment for pack in packs for segment in pack):
        key = SampleKey(seed, segment.sample_id, segment.visit)
        if draw_level(config, key, segment.grid) <= terms.max_level:
            found.append((key.uniform("perceptual"), segment))
    chosen = sorted(found, key=lambda item: (item[0], item[1].sample_id, item[1].visit))[: terms.perceptual_clips]
    windows = {}
    for _, segment in chosen:
        frames = min(segment.grid.t, -(-terms.perceptual_frames // patch_frames))
        place = SampleKey(seed, segment.sample_id, segment.visit).uniform("perceptual/begin")
        begin = int(place * (segment.grid.t - frames + 1))
        windows[segment.sample_id, segment.visit] = Window(begin, frames, loss_tokens / len(chosen))
    return windows


def term_labels(
    clean: PackedBatch, noised: PackedBatch, grids: Sequence[Grid], objective: Objective, max_level: float,
    windows: Windows,
) -> TermLabels:  # fmt: skip
    """Labels of a pack, given clean and noised, whose first segments have `grids`."""
    slope = torch.zeros(clean.tokens.shape[0])
    following = torch.full_like(slope, NONE, dtype=torch.int64)
    rows: list[list[int]] = []
    shares: list[float] = []
    parts = [clean.tokens[:0]]
    begin = 0
    for i, grid in enumerate(grids):
        place, timestep = slice(begin, begin + grid.num_tokens), float(noised.timestep[i])
        begin = place.stop
        if timestep > max_level * NUM_TIMESTEPS:
            continue
        slope[place] = objective.slope(timestep) * ~noised.condition_mask[place]
        following[place] = following_tokens(grid, place.start)
        window = windows.get((clean.sample_ids[i], clean.visits[i]))
        if window is not None:
            first = place.start + window.begin * grid.h * grid.w
            rows.append([first, window.frames, grid.h, grid.w])
            shares.append(window.share)
            parts.append(clean.tokens[first : first + window.frames * grid.h * grid.w])
    return TermLabels(
        slope, following, torch.tensor(rows, dtype=torch.int64).view(-1, 4), torch.tensor(shares), torch.cat(parts)
    )
