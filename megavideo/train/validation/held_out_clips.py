"""The clips that a run is measured on: those held out of its data, or those of a dataset of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import NULL_TEXT_NAME, LatentDataset, open_dataset
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.stream.shards import LatentSample, ShardReader
from megavideo.data.table.held_out import held_out
from megavideo.data.table.open import open_samples
from megavideo.data.table.sample_table import SampleTable
from megavideo.data.table.selection import Selected
from megavideo.errors import ConfigError
from megavideo.train.given_latents import check_given_latents
from megavideo.train.packs.feed import shard_cache, table_cache
from megavideo.types import Grid


@dataclass(frozen=True)
class HeldOutClip:
    """What packing needs of a clip: `pixels` are frames, height and width."""

    index: int
    sample_id: str
    latent: Grid
    text_tokens: int
    pixels: tuple[int, int, int]


@dataclass(frozen=True)
class HeldOutClips:
    """Clips, and how the latent and caption of one are read by its index."""

    clips: tuple[HeldOutClip, ...]
    read: Callable[[int], LatentSample]


def open_held_out(config: TrainRun, dataset: LatentDataset, selected: Selected) -> HeldOutClips:
    """The clips of `validation.uri`, or those that are `selected` from the training data to be held out.

    They have a reader of their own, as the feed's belongs to its thread. Raises ConfigError where `validation.uri` was
    encoded otherwise than the training data, and DataError where it cannot be read.
    """
    table, numbers = selected.table, selected.held_out.tolist()
    if config.validation.uri is not None:
        training = dataset
        dataset = open_dataset(config.validation.uri, RetryPolicy(config.data.retry_seconds))
        _check_encoded_alike(training, dataset)
        check_given_latents(config, dataset, "validation.uri")
        table = open_samples(dataset, (), table_cache(config))
        few = config.validation.clips >= len(table)
        numbers = sorted(table.index.tolist()) if few else held_out(table, config.validation.clips).tolist()
    return HeldOutClips(clips_of(table, numbers), ShardReader(dataset, shard_cache(config, dataset)).read)


def clips_of(table: SampleTable, samples: Iterable[int]) -> tuple[HeldOutClip, ...]:
    """Samples of a table, by number."""
    return tuple(
        HeldOutClip(
            index=sample,
            sample_id=table.sample_id(sample),
            latent=table.grid(sample),
            text_tokens=int(table.text[sample]),
            pixels=tuple(table.pixels[sample].tolist()),
        )
        for sample in samples
    )


def _check_encoded_alike(training: LatentDataset, held: LatentDataset) -> None:
    """Latents of one autoencoder mean nothing to a model of another's."""
    one, two = training.info, held.info
    facts = (
        ("number of latent channels", one.latent_channels, two.latent_channels),
        ("number of frames to a latent frame", one.time_ratio, two.time_ratio),
        ("number of pixels to a latent's side", one.space_ratio, two.space_ratio),
        ("text width", one.text_dim, two.text_dim),
        ("encoding of the empty caption", one.checksums.get(NULL_TEXT_NAME), two.checksums.get(NULL_TEXT_NAME)),
    )
    for name, mine, theirs in facts:
        if mine != theirs:
            raise ConfigError(
                "validation.uri", held.uri, f"its {name} differs from that of the training data ({theirs}, not {mine})",
                "encode it with the encoders of the training data",
            )  # fmt: skip
