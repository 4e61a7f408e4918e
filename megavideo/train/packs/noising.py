"""A pack of clean latents to what one training step needs: noised tokens, targets and loss weights.

Every draw belongs to (seed, sample id, visit): a sample is noised alike whatever pack, rank or layout it is in.

Shape legend: N video tokens, P patch width, K segments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.data.stream.shards import LatentSample
from megavideo.diffusion.captions import choose_caption
from megavideo.diffusion.conditions import draw_mask, drops_text
from megavideo.diffusion.content import latent_gradient
from megavideo.diffusion.objective import Objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import draw_level
from megavideo.train.loss.term_labels import TermLabels, Windows, has_terms, term_labels
from megavideo.types import PackedBatch, PackSegment


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch: the noised pack, target [N, P] and weight [N], which is zero for padding and given tokens.

    `terms` is there where the loss has further terms.
    """

    pack: PackedBatch
    target: torch.Tensor
    weight: torch.Tensor
    terms: TermLabels | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> TrainBatch:
        """On a device, with the model's inputs in its precision."""
        tensors: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self.pack)
            if isinstance(value := getattr(self.pack, field.name), torch.Tensor)
        }
        pack = dataclasses.replace(self.pack, **tensors)
        pack = dataclasses.replace(pack, tokens=pack.tokens.to(dtype), text=pack.text.to(dtype))
        target, weight = (tensor.to(device, non_blocking=True) for tensor in (self.target, self.weight))
        return TrainBatch(pack, target, weight, None if self.terms is None else self.terms.to(device))


def choose_texts(segments: Sequence[PackSegment], samples: Sequence[LatentSample], seed: int) -> list[LatentSample]:
    """The samples, each with one of its captions, drawn by weight for this visit."""
    chosen = []
    for segment, sample in zip(segments, samples, strict=True):
        if sample.texts:
            number = choose_caption(sample.weights, SampleKey(seed, segment.sample_id, segment.visit))
            sample = dataclasses.replace(sample, text=sample.texts[number])
        chosen.append(sample)
    return chosen


def drop_texts(
    segments: Sequence[PackSegment],
    samples: Sequence[LatentSample],
    null_text: torch.Tensor,
    text_dropout: float,
    seed: int,
) -> list[LatentSample]:
    """The samples, some with their caption replaced by that of the empty one, for classifier-free guidance."""
    keys = [SampleKey(seed, s.sample_id, s.visit) for s in segments]
    return [
        dataclasses.replace(sample, text=null_text) if drops_text(text_dropout, key) else sample
        for key, sample in zip(keys, samples, strict=True)
    ]


def noise_pack(
    pack: PackedBatch,
    segments: Sequence[PackSegment],
    config: DiffusionConfig,
    objective: Objective,
    seed: int,
    windows: Windows | None = None,
) -> TrainBatch:
    """Noise each segment of a clean pack at its own level; tokens under its condition mask stay clean.

    `windows` are those that `choose_windows` found for the step; the perceptual term needs them.
    """
    assert windows is not None or not config.terms.perceptual, "nothing was chosen for the perceptual term"
    tokens, timestep = pack.tokens.clone(), pack.timestep.clone()
    given = pack.condition_mask.clone()
    target, weight = torch.zeros_like(tokens), torch.zeros(tokens.shape[0])
    begin = 0
    for i, segment in enumerate(segments):
        key = SampleKey(seed, segment.sample_id, segment.visit)
        place = slice(begin, begin + segment.grid.num_tokens)
        clean = pack.tokens[place]
        gradient = latent_gradient(clean, segment.grid) if config.shift_by_content else None
        level = draw_level(config, key, segment.grid, gradient)
        noised = objective.noise(clean, key.normal("noise", tuple(clean.shape)), level)
        mask = draw_mask(config.conditions, key, segment.grid)
        tokens[place] = torch.where(mask[:, None], clean, noised.noisy)
        target[place] = noised.target
        weight[place] = noised.weight * (~mask)
        given[place] = mask
        timestep[i] = noised.timestep
        begin = place.stop
    noised_pack = dataclasses.replace(pack, tokens=tokens, timestep=timestep, condition_mask=given)
    if not has_terms(config.terms):
        return TrainBatch(noised_pack, target, weight)
    grids = [segment.grid for segment in segments]
    labels = term_labels(pack, noised_pack, grids, objective, config.terms.max_level, windows or {})
    return TrainBatch(noised_pack, target, weight, labels)


def num_loss_tokens(packs: Sequence[Sequence[PackSegment]], config: DiffusionConfig, seed: int) -> int:
    """Tokens that a step's loss is averaged over: real and not given. Known on every rank without communication."""
    total = 0
    for segment in (s for pack in packs for s in pack):
        mask = draw_mask(config.conditions, SampleKey(seed, segment.sample_id, segment.visit), segment.grid)
        total += segment.grid.num_tokens - int(mask.sum())
    return total
