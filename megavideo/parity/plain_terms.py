"""The further terms of the loss in plain torch, clip by clip on whole latents: what every layout must reproduce."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from megavideo.data.patches import unpatchify
from megavideo.diffusion.objective import NUM_TIMESTEPS, build_objective
from megavideo.encoders.features import PerceptualDistance
from megavideo.encoders.video.pca import SPACE_RATIO, TIME_RATIO, BlockBasis, PcaAutoencoder
from megavideo.parity.spec import ParitySpec
from megavideo.train.loss.term_labels import Windows
from megavideo.train.packs.noising import TrainBatch
from megavideo.types import Grid


def parity_autoencoder(spec: ParitySpec) -> PcaAutoencoder:
    """A small autoencoder with random orthonormal bases, alike in every process."""
    generator = torch.Generator().manual_seed(spec.seed)
    channels = spec.model.latent_channels

    def basis(size: int) -> BlockBasis:
        columns = torch.linalg.qr(torch.randn(size, channels, generator=generator))[0]
        return BlockBasis(torch.zeros(size), columns, torch.full((channels,), 4.0))

    block = 3 * SPACE_RATIO**2
    return PcaAutoencoder(basis(block), basis(TIME_RATIO * block))


def plain_terms(
    spec: ParitySpec, batch: TrainBatch, prediction: torch.Tensor, windows: Windows
) -> Mapping[str, torch.Tensor]:
    """Each term's sum over a pack, unweighted, from its prediction [N, P]; the batch is in fp32."""
    pack, config, patch = batch.pack, spec.diffusion.terms, spec.model.patch
    objective = build_objective(spec.diffusion)
    sums = {name: prediction.sum() * 0.0 for name in spec.loss_terms}
    width = prediction.shape[1]
    for i, sample_id in enumerate(pack.sample_ids):
        timestep = float(pack.timestep[i])
        if not sample_id or timestep > config.max_level * NUM_TIMESTEPS:
            continue
        rows = slice(int(pack.cu_seqlens[i]), int(pack.cu_seqlens[i + 1]))
        grid = Grid(*pack.grid[i].tolist())
        given, noisy = pack.condition_mask[rows, None], pack.tokens[rows]
        predicted, true = (
            unpatchify(torch.where(given, noisy, objective.clean(noisy, values[rows].float(), timestep)), grid, patch)
            for values in (prediction, batch.target)
        )
        free = unpatchify((~given).float().expand(-1, width), grid, patch).bool()
        for name, order in (("temporal_consistency", 1), ("motion_smoothness", 2)):
            if name in sums and predicted.shape[1] > order:
                inside = free.unfold(1, order + 1, 1).all(-1)
                error = predicted.diff(n=order, dim=1) - true.diff(n=order, dim=1)
                sums[name] = sums[name] + error[inside].square().sum() / width
        window = windows.get((sample_id, pack.visits[i]))
        if window is not None:
            frames = slice(window.begin * patch[0], (window.begin + window.frames) * patch[0])
            found, expected = (_decode(spec, latent[:, frames]) for latent in (predicted, true))
            distance = PerceptualDistance(None)(found, expected.detach()).mean()
            sums["perceptual"] = sums["perceptual"] + window.share * distance
    return sums


def _decode(spec: ParitySpec, latent: torch.Tensor) -> torch.Tensor:
    """Pictures [T, 3, H, W]."""
    return parity_autoencoder(spec).decode_for_loss(latent).transpose(0, 1)
