"""Held-out clips in packs: the same at every measurement and under every layout, dealt to data-parallel ranks.

Shape legend: N video tokens, P patch width.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megavideo.config.schema.train import TrainRun
from megavideo.data.patches import token_grid
from megavideo.data.plan.packing import PackLimits, pack_balanced
from megavideo.data.stream.batch import assemble
from megavideo.diffusion.conditions import draw_mask
from megavideo.diffusion.objective import Objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.errors import DataError
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.packs.noising import TrainBatch, tell_given
from megavideo.train.validation.held_out_clips import HeldOutClip, HeldOutClips
from megavideo.types import PackedBatch, PackSegment

_KEPT_BYTES = 1 << 30  # of a rank's packs on the host; more are read again at each measurement
_SEED, _VISIT = 0, 0  # no run's own: the noise is the same for all of them


@dataclass(frozen=True, order=True)
class SizeClass:
    """Clips of at most `area` pixels a frame and `frames` frames, and more than half of that; images by themselves."""

    area: int
    frames: int

    @classmethod
    def of(cls, pixels: tuple[int, int, int]) -> SizeClass:
        """The class of clips of so many frames, height and width."""
        frames, height, width = pixels
        return cls(_power_of_two(height * width), 1 + (_power_of_two(frames - 1) if frames > 1 else 0))


@dataclass(frozen=True)
class CleanPack:
    """A pack before it is noised, on the host, and the class of each token [N]; one past the last for those left out.

    Left out are padding, tokens that the run's conditions give, and all of a pack that only fills a round.
    """

    segments: tuple[PackSegment, ...]
    batch: PackedBatch
    classes: torch.Tensor


class HeldOutPacks:
    """Packs of held-out clips within the run's limits.

    Clips that no pack takes are left out with a warning. Raises DataError where none is left.
    """

    def __init__(self, config: TrainRun, held_out: HeldOutClips, mesh: ProcessMesh) -> None:
        self._config = config
        self._read = held_out.read
        self._mesh = mesh
        self._limits, self._packs = _plan(config, held_out.clips)
        placed = {segment.index for pack in self._packs for segment in pack}
        self._class_of = {clip.index: SizeClass.of(clip.pixels) for clip in held_out.clips if clip.index in placed}
        self.classes: tuple[SizeClass, ...] = tuple(sorted(set(self._class_of.values())))
        self._kept: dict[int, CleanPack] = {}

    @property
    def rounds(self) -> int:
        """Packs that each data-parallel rank works on."""
        return -(-len(self._packs) // self._mesh.dp)

    @property
    def num_clips(self) -> int:
        """Clips in all packs."""
        return len(self._class_of)

    def counts(self) -> list[tuple[int, int]]:
        """Clips, and their tokens in the loss, of each class, over all ranks."""
        counts = [(0, 0)] * len(self.classes)
        for segment in (s for pack in self._packs for s in pack):
            number = self.classes.index(self._class_of[segment.index])
            clips, tokens = counts[number]
            given = 0 if self._config.model.given_channels else int(self._drawn(segment).sum())
            counts[number] = (clips + 1, tokens + segment.grid.num_tokens - given)
        return counts

    def mine(self) -> Iterator[CleanPack]:
        """This rank's packs, one for each round; kept for the next time where they take little memory."""
        for number in range(self._mesh.dp_rank, self.rounds * self._mesh.dp, self._mesh.dp):
            pack = self._kept.get(number) or self._make(number)
            if number not in self._kept and self.rounds * _num_bytes(pack.batch) <= _KEPT_BYTES:
                self._kept[number] = pack
            yield pack

    def _make(self, number: int) -> CleanPack:
        # a rank that has no pack left takes part with one that does not count
        counts = number < len(self._packs)
        segments = self._packs[number if counts else 0]
        samples = [self._read(segment.index) for segment in segments]
        batch = assemble(segments, samples, self._config.model.patch, self._limits)
        classes = torch.full((self._limits.tokens,), len(self.classes))
        given, model = batch.condition_mask.clone(), self._config.model
        keys = [_key(segment) for segment in segments]
        batch = tell_given(batch, segments, samples, keys, self._config.diffusion, model)
        for segment, begin, end in _bounds(segments):
            if not model.given_channels:
                given[begin:end] = self._drawn(segment)
            if counts:
                classes[begin:end] = self.classes.index(self._class_of[segment.index])
        classes[given] = len(self.classes)
        return CleanPack(segments, dataclasses.replace(batch, condition_mask=given), classes)

    def _drawn(self, segment: PackSegment) -> torch.Tensor:
        return draw_mask(self._config.diffusion.conditions, _key(segment), segment.grid)


def noised_at(pack: CleanPack, objective: Objective, levels: Sequence[float], number: int) -> TrainBatch:
    """A pack noised at one of the levels, by noise that belongs to the clip and the level's number; weights are one.

    So runs that weigh the loss differently compare.
    """
    clean, given = pack.batch.tokens, pack.batch.condition_mask
    tokens, target, timestep = clean.clone(), torch.zeros_like(clean), pack.batch.timestep.clone()
    for i, (segment, begin, end) in enumerate(_bounds(pack.segments)):
        noise = _key(segment).normal(f"validation/{number}", (end - begin, clean.shape[1]))
        noised = objective.noise(clean[begin:end], noise, levels[number])
        tokens[begin:end] = torch.where(given[begin:end, None], clean[begin:end], noised.noisy)
        target[begin:end], timestep[i] = noised.target, noised.timestep
    batch = dataclasses.replace(pack.batch, tokens=tokens, timestep=timestep)
    return TrainBatch(batch, target, torch.ones(clean.shape[0]))


def middle_levels(count: int, within: tuple[float, float] | None) -> tuple[float, ...]:
    """The middles of `count` equal parts of the levels between data (0) and noise (1), or of those `within` a range."""
    low, high = within or (0.0, 1.0)
    return tuple(low + (number + 0.5) / count * (high - low) for number in range(count))


def _plan(config: TrainRun, clips: Sequence[HeldOutClip]) -> tuple[PackLimits, list[tuple[PackSegment, ...]]]:
    """The clips in as few packs as hold them, which all have the same limits."""
    data = config.data
    limits = PackLimits(data.tokens_per_pack, data.text_tokens_per_pack, data.max_segments or data.tokens_per_pack)
    segments = [
        PackSegment(c.index, c.sample_id, _VISIT, token_grid(c.latent, config.model.patch), c.text_tokens)
        for c in clips
    ]
    fitting = [s for s in segments if limits.takes(s.grid.num_tokens, s.text_tokens)]
    if not fitting:
        raise DataError(
            f"validation: none of {len(segments)} held-out clips fits a pack of data.tokens_per_pack={limits.tokens} "
            f"and data.text_tokens_per_pack={limits.text_tokens}. Remedy: raise them, or give validation.uri a dataset "
            "of smaller clips"
        )
    if len(fitting) < len(segments):
        logging.getLogger(__name__).warning(
            "validation: %d of %d held-out clips fit no pack and are left out", len(segments) - len(fitting),
            len(segments),
        )  # fmt: skip
    tokens = np.array([s.grid.num_tokens for s in fitting], np.int64)
    text = np.array([limits.text_need(s.text_tokens) for s in fitting], np.int64)
    num_packs = math.ceil(limits.packs_needed(int(tokens.sum()), int(text.sum()), len(fitting)))
    while (packing := pack_balanced(tokens, text, limits, num_packs)).left:
        num_packs += 1
    packs = [tuple(fitting[item] for item in pack) for pack in packing.packs]
    return dataclasses.replace(limits, segments=max(len(pack) for pack in packs)), packs


def _bounds(segments: Sequence[PackSegment]) -> Iterator[tuple[PackSegment, int, int]]:
    begin = 0
    for segment in segments:
        yield segment, begin, begin + segment.grid.num_tokens
        begin += segment.grid.num_tokens


def _key(segment: PackSegment) -> SampleKey:
    return SampleKey(_SEED, segment.sample_id, _VISIT)


def _num_bytes(batch: PackedBatch) -> int:
    given = sum(tensor.nbytes for tensor in (batch.given, batch.image) if tensor is not None)
    return int(batch.tokens.nbytes + batch.text.nbytes + given)


def _power_of_two(value: int) -> int:
    """The smallest power of two from `value` on."""
    return 1 << (value - 1).bit_length()
