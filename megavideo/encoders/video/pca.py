"""The built-in video autoencoder: causal, linear, fitted in closed form. It needs no download and costs two matmuls.

The first frame's blocks of 8x8 pixels, and the blocks of 4x8x8 of each further group of four frames, are projected on
their principal components. The two bases are aligned: within the span of the groups' components, the axes are turned to
lie as near as they can to those of the first frame held still (weighted orthogonal Procrustes), so that a channel means
the same thing in every latent frame. Turning changes nothing in the reconstruction. A last turn, the same for both,
spreads the variance evenly over the channels: standardising them is then one common scale and not a whitening, and
latents keep the natural order of things, in which layout and colour outweigh fine detail.

Shape legend: C latent channels, S space ratio, G frames in a group, D numbers in a block (3*S*S, or 3*G*S*S).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from megavideo.border.fields import Size
from megavideo.border.json_text import read_json
from megavideo.border.tensor_file import read_tensors
from megavideo.encoders.video.autoencoder import FitVideos, check_video
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import replacing, write_file

TIME_RATIO = 4
SPACE_RATIO = 8
MOST_CHANNELS = 3 * SPACE_RATIO * SPACE_RATIO
_BLOCKS_PER_CLIP = 4096
# A channel that varies less than this share of the widest, or than half a grey level, is not blown up to unit variance:
# it would be noise that a diffusion model has to learn.
_SMALLEST_RELATIVE_SPREAD = 1e-2
_SMALLEST_SPREAD = 1.0 / 255.0
_TENSORS_NAME = "pca.safetensors"
_CONFIG_NAME = "pca.json"


@dataclass(frozen=True)
class BlockBasis:
    """An affine map of blocks: latent = (block - mean) @ basis / spread.

    mean [D], basis [D, C] with orthonormal columns, spread [C].
    """

    mean: torch.Tensor
    basis: torch.Tensor
    spread: torch.Tensor

    def encode(self, blocks: torch.Tensor) -> torch.Tensor:
        """Latents [..., C] of blocks [..., D]."""
        return (blocks - self.mean) @ (self.basis / self.spread)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Blocks [..., D] of latents [..., C], on the latents' device."""
        return latents @ (self.basis * self.spread).T.to(latents.device) + self.mean.to(latents.device)


@dataclass(frozen=True)
class _Moments:
    """Mean [D] and covariance [D, D] of blocks, float64."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class _Config:
    channels: Size


class PcaAutoencoder:
    """Causal linear autoencoder; see the module."""

    def __init__(self, first: BlockBasis, group: BlockBasis) -> None:
        self.time_ratio = TIME_RATIO
        self.space_ratio = SPACE_RATIO
        self.latent_channels = first.basis.shape[1]
        self.first = first
        self.group = group

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Latent [C, t, h, w] of a video [3, T, H, W] in -1..1."""
        check_video(video, TIME_RATIO, SPACE_RATIO)
        parts = [self.first.encode(_blocks(video[:, :1], 1))]
        if video.shape[1] > 1:
            parts.append(self.group.encode(_blocks(video[:, 1:], TIME_RATIO)))
        return torch.cat(parts).permute(3, 0, 1, 2).contiguous()

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Video [3, T, H, W] in -1..1 of a latent [C, t, h, w]."""
        return self.decode_for_loss(latent).clamp(-1.0, 1.0)

    def decode_for_loss(self, latent: torch.Tensor) -> torch.Tensor:
        """The same with gradients and unclamped, on the latent's device."""
        latent = latent.float().permute(1, 2, 3, 0)
        parts = [_pixels(self.first.decode(latent[:1]), 1)]
        if latent.shape[0] > 1:
            parts.append(_pixels(self.group.decode(latent[1:]), TIME_RATIO))
        return torch.cat(parts, dim=1)

    def save(self, folder: Path) -> None:
        """Write pca.json and pca.safetensors."""
        tensors: dict[str, torch.Tensor] = {}
        for name, basis in (("first", self.first), ("group", self.group)):
            tensors |= {f"{name}.mean": basis.mean, f"{name}.basis": basis.basis, f"{name}.spread": basis.spread}
        with replacing(folder / _TENSORS_NAME) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        config = {"channels": self.latent_channels, "time_ratio": TIME_RATIO, "space_ratio": SPACE_RATIO}
        write_file(folder / _CONFIG_NAME, json.dumps(config).encode())

    @classmethod
    def load(cls, folder: Path) -> PcaAutoencoder:
        """Read what `save` wrote; DataError where it is missing or damaged."""
        try:
            channels = read_json(folder / _CONFIG_NAME, _Config).channels
            tensors = read_tensors(folder / _TENSORS_NAME)
            first, group = (
                BlockBasis(*(tensors[f"{name}.{part}"] for part in ("mean", "basis", "spread")))
                for name in ("first", "group")
            )
            sizes = [(64 * 3, first), (64 * 3 * TIME_RATIO, group)]
            if any(tuple(basis.basis.shape) != (size, channels) for size, basis in sizes):
                raise ValueError("shapes do not agree")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder / _CONFIG_NAME}: damaged ({error}). Remedy: encode the dataset again") from error
        return cls(first, group)


def fit_pca(channels: int, fit_clips: int, fit_videos: FitVideos) -> PcaAutoencoder:
    """Fit the autoencoder to at most `fit_clips` clips, in double precision, the same way on every run.

    Raises ConfigError where `channels` exceeds the numbers in a block of the first frame (192).
    """
    if channels > MOST_CHANNELS:
        raise ConfigError(
            "autoencoder.channels", channels, f"a block holds {MOST_CHANNELS} numbers", f"give {MOST_CHANNELS} or less"
        )
    first_sum, group_sum = _MomentSum(MOST_CHANNELS), _MomentSum(MOST_CHANNELS * TIME_RATIO)
    for number, video in enumerate(fit_videos(fit_clips)):
        # A window may begin at any frame, so that the first frames of groups are examples of first frames too.
        still = torch.cat([_blocks(video[:, index : index + 1], 1) for index in range(0, video.shape[1], TIME_RATIO)])
        first_sum.add(_sampled(still, f"first {number}"))
        if video.shape[1] > 1:
            group_sum.add(_sampled(_blocks(video[:, 1:], TIME_RATIO), f"group {number}"))
    if first_sum.count == 0:
        raise DataError("autoencoder: no clip to fit to. Remedy: give clips that can be encoded")
    first = _principal(first_sum.moments(), channels)
    held_mean, held_basis = _held_still(first_sum.moments().mean), _held_still(first.basis) / np.sqrt(TIME_RATIO)
    if group_sum.count == 0:
        # Only images: a video is then taken for an image held still.
        group = _Components(held_mean, held_basis, first.spread * np.sqrt(TIME_RATIO))
    else:
        group = _aligned(group_sum.moments(), _principal(group_sum.moments(), channels), held_basis, first.spread)
    covariances = [_covariance(first, first_sum), _covariance(group, group_sum)]
    varying = [covariance / np.trace(covariance) for covariance in covariances if np.trace(covariance) > 0]
    turn = equalising_rotation(sum(varying, np.zeros((channels, channels))))
    return PcaAutoencoder(_block_basis(_turned(first, first_sum, turn)), _block_basis(_turned(group, group_sum, turn)))


def equalising_rotation(covariance: np.ndarray) -> np.ndarray:
    """An orthogonal matrix R [C, C] for which R.T @ covariance @ R has a constant diagonal.

    Each step turns one plane until one channel has the mean variance (the constructive proof of Schur and Horn).
    """
    matrix, turn = np.array(covariance, dtype=np.float64), np.eye(len(covariance))
    mean = float(np.trace(matrix)) / len(matrix)
    for _ in range(len(matrix) - 1):
        variances = np.diag(matrix)
        i, j = int(variances.argmax()), int(variances.argmin())
        above, below = variances[i] - mean, variances[j] - mean
        if above <= 1e-12 * mean or below >= 0:
            break
        # tangent t of the angle at which channel i has the mean variance: below t^2 + 2 m_ij t + above = 0
        tangent = (-matrix[i, j] - np.sqrt(matrix[i, j] ** 2 - below * above)) / below
        cosine = 1.0 / np.sqrt(1.0 + tangent**2)
        plane = np.eye(len(matrix))
        plane[[i, j, i, j], [i, j, j, i]] = cosine, cosine, -cosine * tangent, cosine * tangent
        matrix, turn = plane.T @ matrix @ plane, turn @ plane
    return turn


@dataclass(frozen=True)
class _Components:
    """Principal components in float64: mean [D], basis [D, C] and the spread [C] of blocks along each."""

    mean: np.ndarray
    basis: np.ndarray
    spread: np.ndarray


class _MomentSum:
    """Running sums for a mean and a covariance."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._sum = np.zeros(size)
        self._outer = np.zeros((size, size))

    def add(self, blocks: np.ndarray) -> None:
        """Count in blocks [n, D] float64."""
        self.count += len(blocks)
        self._sum += blocks.sum(axis=0)
        self._outer += blocks.T @ blocks

    def moments(self) -> _Moments:
        """Mean and covariance of all that was added."""
        mean = self._sum / self.count
        return _Moments(mean, self._outer / self.count - np.outer(mean, mean))


def _principal(moments: _Moments, channels: int) -> _Components:
    variances, vectors = np.linalg.eigh(moments.covariance)
    basis = vectors[:, ::-1][:, :channels]
    # An eigenvector's sign is arbitrary; the greatest entry is made positive.
    signs = np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(channels)])
    return _Components(moments.mean, basis * signs, np.sqrt(np.maximum(variances[::-1][:channels], 0.0)))


def _aligned(moments: _Moments, group: _Components, target: np.ndarray, weights: np.ndarray) -> _Components:
    """Turn the basis of `group` within its span towards `target` [D, C], whose columns count by `weights` [C]."""
    floored = np.maximum(weights, 1e-6 * max(float(weights.max()), 1e-12))
    left, _, right = np.linalg.svd(group.basis.T @ (target * floored))
    basis = group.basis @ (left @ right)
    variances = np.einsum("dc,de,ec->c", basis, moments.covariance, basis)
    return _Components(group.mean, basis, np.sqrt(np.maximum(variances, 0.0)))


def _covariance(components: _Components, blocks: _MomentSum) -> np.ndarray:
    """Covariance [C, C] of the components; with no blocks to go by, what their spreads say."""
    if blocks.count == 0:
        return np.diag(components.spread**2)
    return components.basis.T @ blocks.moments().covariance @ components.basis


def _turned(components: _Components, blocks: _MomentSum, turn: np.ndarray) -> _Components:
    """The same span with its axes turned by an orthogonal matrix [C, C]."""
    variances = np.diag(turn.T @ _covariance(components, blocks) @ turn)
    return _Components(components.mean, components.basis @ turn, np.sqrt(np.maximum(variances, 0.0)))


def _block_basis(components: _Components) -> BlockBasis:
    floor = max(_SMALLEST_SPREAD, _SMALLEST_RELATIVE_SPREAD * float(components.spread.max()))
    spread = np.maximum(components.spread, floor)
    return BlockBasis(*(torch.from_numpy(x.copy()).float() for x in (components.mean, components.basis, spread)))


def _held_still(block: np.ndarray) -> np.ndarray:
    """Repeat what belongs to one frame, [3*S*S, ...], over a group: [3*G*S*S, ...]."""
    colours = block.reshape(3, 1, SPACE_RATIO * SPACE_RATIO, *block.shape[1:])
    return np.repeat(colours, TIME_RATIO, axis=1).reshape(3 * TIME_RATIO * SPACE_RATIO**2, *block.shape[1:])


def _sampled(blocks: torch.Tensor, name: str) -> np.ndarray:
    """At most a fixed number of the blocks [..., D] as [n, D] float64, chosen by a generator seeded by `name`."""
    flat = blocks.reshape(-1, blocks.shape[-1])
    if len(flat) > _BLOCKS_PER_CLIP:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        chosen = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(len(flat))[:_BLOCKS_PER_CLIP])
        flat = flat[torch.from_numpy(chosen)]
    return flat.numpy().astype(np.float64)


def _blocks(video: torch.Tensor, frames: int) -> torch.Tensor:
    """Blocks [T/frames, H/S, W/S, 3*frames*S*S] of a video [3, T, H, W]."""
    _, total, height, width = video.shape
    shape = (3, total // frames, frames, height // SPACE_RATIO, SPACE_RATIO, width // SPACE_RATIO, SPACE_RATIO)
    return video.float().reshape(shape).permute(1, 3, 5, 0, 2, 4, 6).flatten(3)


def _pixels(blocks: torch.Tensor, frames: int) -> torch.Tensor:
    """The inverse of `_blocks`."""
    groups, rows, columns, _ = blocks.shape
    parts = blocks.reshape(groups, rows, columns, 3, frames, SPACE_RATIO, SPACE_RATIO)
    return parts.permute(3, 0, 4, 1, 5, 2, 6).reshape(3, groups * frames, rows * SPACE_RATIO, columns * SPACE_RATIO)
