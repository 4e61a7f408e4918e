"""A pack of clean latents to what one training step needs: noised tokens, targets and loss weights.

Every draw belongs to (seed, sample id, visit): a sample is noised alike whatever pack, rank or layout it is in.

Shape legend: N video tokens, P patch width, K segments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.data.patches import patchify
from megavideo.data.stream.shards import LatentSample
from megavideo.device.copies import DeviceCopies
from megavideo.diffusion.captions import choose_caption
from megavideo.diffusion.conditions import draw_mask, draw_task, drops_text, given_channels
from megavideo.diffusion.content import latent_gradient
from megavideo.diffusion.objective import Objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import draw_level
from megavideo.errors import DataError
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
        """On a device at once, with the model's inputs in its precision. `Loader` does it beside other work."""
        return self._mapped(lambda tensor, wanted: tensor.to(wanted).to(device), dtype)

    def staged(self, copies: DeviceCopies, dtype: torch.dtype) -> TrainBatch:
        """As `to`, but still on the host, where copies to the device begin; the batch itself if it is so already."""
        return self._mapped(copies.staged, dtype)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, in order."""
        terms = () if self.terms is None else self.terms.tensors()
        return (*(getattr(self.pack, name) for name in self._in_pack()), self.target, self.weight, *terms)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> TrainBatch:
        """The same batch of other tensors, in the order of `tensors()`."""
        names = self._in_pack()
        replaced: dict[str, Any] = dict(zip(names, tensors[: len(names)], strict=True))
        target, weight, *terms = tensors[len(names) :]
        pack = dataclasses.replace(self.pack, **replaced)
        return TrainBatch(pack, target, weight, None if self.terms is None else TermLabels(*terms))

    def _mapped(self, change: Callable[[torch.Tensor, torch.dtype], torch.Tensor], dtype: torch.dtype) -> TrainBatch:
        """Each tensor changed to what it is to be: the model's inputs in `dtype`, others as they are."""
        inputs = {id(self.pack.tokens), id(self.pack.text), id(self.pack.given), id(self.pack.image)}
        return self.with_tensors([change(t, dtype if id(t) in inputs else t.dtype) for t in self.tensors()])

    def _in_pack(self) -> list[str]:
        names = [field.name for field in dataclasses.fields(self.pack)]
        return [name for name in names if isinstance(getattr(self.pack, name), torch.Tensor)]


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


def tell_given(
    pack: PackedBatch,
    segments: Sequence[PackSegment],
    samples: Sequence[LatentSample],
    keys: Sequence[SampleKey],
    config: DiffusionConfig,
    model: ModelConfig,
) -> PackedBatch:
    """The pack with the further input channels of a model that has such, and image embeddings; of others as it is.

    They tell what the task drawn by a sample's key gives, from what is stored for it, and are zero where it gives
    nothing. Raises DataError for a sample of which it is not stored.
    """
    if not model.given_channels:
        return pack
    channels = pack.tokens.new_zeros(pack.tokens.shape[0], model.given_dim)
    image = None if model.image_dim is None else _no_images(pack, samples, model.image_dim)
    begin = 0
    for i, (segment, sample, key) in enumerate(zip(segments, samples, keys, strict=True)):
        end = begin + segment.grid.num_tokens
        task = draw_task(config.conditions, key, segment.grid)
        if task != "text":
            if task not in sample.given:
                raise DataError(
                    f"sample {segment.sample_id}: its shard has no latents of what {task} gives, though its dataset "
                    "tells of them. Remedy: encode again with overwrite=true"
                )
            told = patchify(sample.given[task], model.patch)
            channels[begin:end] = given_channels(told, task, segment.grid, model)
            if image is not None:
                image[i] = _image_of(segment, sample, image.shape[1:])
        begin = end
    return dataclasses.replace(pack, given=channels, image=image)


def _no_images(pack: PackedBatch, samples: Sequence[LatentSample], width: int) -> torch.Tensor:
    """Zeros [K, I, E] for a pack of samples whose embeddings have I rows."""
    rows = next((len(sample.image) for sample in samples if sample.image is not None), 1)
    return pack.tokens.new_zeros(len(pack.grid), rows, width)


def _image_of(segment: PackSegment, sample: LatentSample, size: Sequence[int]) -> torch.Tensor:
    found = None if sample.image is None else tuple(sample.image.shape)
    if sample.image is None or found != tuple(size):
        raise DataError(
            f"sample {segment.sample_id}: its shard has an image embedding of {found}, and {tuple(size)} is needed. "
            "Remedy: encode again with overwrite=true"
        )
    return sample.image


def noise_pack(
    pack: PackedBatch,
    segments: Sequence[PackSegment],
    config: DiffusionConfig,
    objective: Objective,
    seed: int,
    windows: Windows | None = None,
) -> TrainBatch:
    """Noise each segment of a clean pack at its own level; tokens under its condition mask stay clean.

    Where further channels tell what is given (`tell_given`), nothing is under the mask, and all tokens are noised.
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
        if pack.given is not None:
            mask = torch.zeros_like(mask)
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


def num_loss_tokens(
    packs: Sequence[Sequence[PackSegment]], config: DiffusionConfig, seed: int, model: ModelConfig
) -> int:
    """Tokens that a step's loss is averaged over: real and not given. Known on every rank without communication."""
    total = 0
    for segment in (s for pack in packs for s in pack):
        total += segment.grid.num_tokens
        if not model.given_channels:
            key = SampleKey(seed, segment.sample_id, segment.visit)
            total -= int(draw_mask(config.conditions, key, segment.grid).sum())
    return total
