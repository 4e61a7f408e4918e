"""The further terms of the loss under a layout: each rank forms those that begin in its own tokens.

A difference between frames may begin on one rank and end on another, and a clip that is decoded may lie on several. So
the ranks that share a pack's tokens bring together by how much their predictions move the clean latents, which is small
beside the hidden state, and gradients go back the same way.

Shape legend: N tokens of the pack, n own tokens, P patch width, T terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from megavideo.config.schema.loss_terms import LossTermsConfig
from megavideo.data.patches import unpatchify
from megavideo.diffusion.temporal_terms import difference_errors
from megavideo.encoders.features import PerceptualDistance
from megavideo.parallel.layers.whole_pack import whole_pack
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.loss.term_labels import TermLabels, has_terms
from megavideo.types import Grid

# from a latent [C, t, h, w] to its video [3, T, H, W] in -1..1, with gradients
Decode = Callable[[torch.Tensor], torch.Tensor]
# how far two latents [C, t, h, w] are apart once they are decoded, with gradients to the first
LatentDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_ORDERS = {"temporal_consistency": 1, "motion_smoothness": 2}
_PERCEPTUAL = "perceptual"


@dataclass(frozen=True)
class LossTerms:
    """The terms that have a weight, by name; `distance` is needed for the perceptual one."""

    weights: Mapping[str, float]
    patch: tuple[int, int, int]
    mesh: ProcessMesh
    groups: Groups
    distance: LatentDistance | None

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor, labels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sums [T] of what begins in own tokens: prediction and target [n, P], and `TermLabels.tensors()`."""
        given = TermLabels(*labels)
        own = self.mesh.own_tokens(given.slope.shape[0])
        moved = (prediction.float() - target) * given.slope[own, None]
        moved = whole_pack(moved, self.mesh, self.groups)
        return torch.stack([self._value(name, moved, given, own) for name in self.weights])

    def _value(self, name: str, moved: torch.Tensor, given: TermLabels, own: slice) -> torch.Tensor:
        if name == _PERCEPTUAL:
            return self._perceptual(moved, given, own)
        taking_part = given.slope != 0
        order, frames = _ORDERS[name], self.patch[0]
        return difference_errors(moved, taking_part, given.following, own, order=order, frames=frames).sum()

    def _perceptual(self, moved: torch.Tensor, given: TermLabels, own: slice) -> torch.Tensor:
        """Mean distance over the frames of each window, times its share."""
        assert self.distance is not None
        # every rank takes part in the backward pass of the gathering, also one that decodes nothing
        total = moved[:0].sum()
        at = 0
        for (begin, *sides), share in zip(given.windows.tolist(), given.shares.tolist(), strict=True):
            grid = Grid(*sides)
            clean = given.clean[at : at + grid.num_tokens]
            at += grid.num_tokens
            if own.start <= begin < own.stop:
                predicted = unpatchify(clean + moved[begin : begin + grid.num_tokens], grid, self.patch)
                total = total + share * self.distance(predicted, unpatchify(clean, grid, self.patch))
        return total


def build_loss_terms(
    config: LossTermsConfig,
    patch: tuple[int, int, int],
    mesh: ProcessMesh,
    groups: Groups,
    decode: Decode | None,
    device: torch.device,
) -> LossTerms | None:
    """The terms of a run; None where none has a weight. `decode` may be None without `perceptual`.

    Its features are on `device`.
    """
    if not has_terms(config):
        return None
    weights = {name: float(getattr(config, name)) for name in (*_ORDERS, _PERCEPTUAL)}
    weights = {name: weight for name, weight in weights.items() if weight}
    assert decode is not None or _PERCEPTUAL not in weights, "nothing decodes for the perceptual term"
    return LossTerms(weights, patch, mesh, groups, None if decode is None else _decoded_distance(decode, device))


def _decoded_distance(decode: Decode, device: torch.device) -> LatentDistance:
    features = PerceptualDistance(None).to(device)

    def distance(predicted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """The mean over the frames."""
        found = decode(predicted)
        with torch.no_grad():
            true = decode(clean)
        return features(found.transpose(0, 1), true.transpose(0, 1)).mean()

    return distance
