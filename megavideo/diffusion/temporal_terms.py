"""Terms of the loss on how the predicted clean latents change from frame to frame, beside how the clip's own do.

With x the clip's latents, x' the predicted ones and e = x' - x, the first differences differ by those of e, and so do
the second: both terms are squares of differences of e. That of first differences is the velocity loss of Tevet et al.
2023 (Human Motion Diffusion Model) and, in latents of video, the motion residuals of Jeong et al. 2024 (VMC); that of
second differences the acceleration loss of Zeng et al. 2022 (SmoothNet).

Shape legend: N tokens of a pack, n tokens of a run of it, P patch width, f latent frames in a token.
"""

from __future__ import annotations

import torch

from megavideo.types import Grid

NONE = -1


def following_tokens(grid: Grid, begin: int) -> torch.Tensor:
    """For each token of a segment that begins at `begin`: the one at its place in the next frame of tokens, or NONE."""
    places = torch.arange(begin, begin + grid.num_tokens)
    after = places + grid.h * grid.w
    return torch.where(after < begin + grid.num_tokens, after, NONE)


def difference_errors(
    moved: torch.Tensor, taking_part: torch.Tensor, following: torch.Tensor, run: slice, *, order: int, frames: int
) -> torch.Tensor:
    """Squares of the differences of `order` 1 or 2 that begin in each token of `run`: [n] float32, mean over P.

    `moved` [N, P] is predicted less true clean latents, `taking_part` [N] and `following` [N] tell of the whole pack.
    A token holds `frames` latent frames, in their order; a difference that meets a token which takes no part is none.
    """
    places = torch.arange(run.start, run.stop, device=moved.device)
    lines, present = [], []
    for _ in range(order + 1):  # differences that begin in a token end at most so many tokens later
        inside = places.clamp_min(0)
        lines.append(moved[inside].unflatten(1, (frames, -1)))
        present.append(((places != NONE) & taking_part[inside])[:, None].expand(-1, frames))
        places = torch.where(places != NONE, following[inside], NONE)
    differences = torch.cat(lines, dim=1).diff(n=order, dim=1)[:, :frames]
    whole = torch.cat(present, dim=1).unfold(1, order + 1, 1).all(dim=2)[:, :frames]
    return (differences.square().sum(dim=2) * whole).sum(dim=1) / moved.shape[1]
