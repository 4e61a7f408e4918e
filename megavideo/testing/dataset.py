"""A small dataset of random latents, written as encode writes one, without any video."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from megavideo.config.schema.prepare import GivenTask
from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.dataset.dataset import (
    ENCODERS_PREFIX,
    FORMAT,
    NULL_TEXT_NAME,
    DatasetInfo,
    checksum,
    manifest_row,
    null_text_bytes,
)
from megavideo.data.dataset.index import ShardEntry
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.open import open_storage
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.dataset_place import clear
from megavideo.encoders.encode.dataset_writer import ShardWriter, publish_version, writing_shards
from megavideo.encoders.encode.manifest_file import ManifestFile
from megavideo.encoders.folder import save_encoders
from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.encoders.video.pca import PcaAutoencoder, fit_pca
from megavideo.types import Grid, SampleInfo

CHANNELS = 4
TEXT_DIM = 32
PATCH = (1, 2, 2)
GRIDS = (Grid(2, 4, 4), Grid(1, 8, 8), Grid(3, 4, 6), Grid(1, 4, 4), Grid(2, 6, 4), Grid(4, 4, 4))
_IMAGE_ROWS = 5
_COLOURS = ("red", "green", "blue", "yellow", "white")


def write_dataset(
    uri: str,
    num_samples: int,
    *,
    grids: Sequence[Grid] = GRIDS,
    bad: Mapping[int, float] | None = None,
    flat: bool = False,
    shard_bytes: int = 8192,
    given: tuple[GivenTask, ...] = (),
    image_dim: int | None = None,
) -> DatasetInfo:
    """Write `num_samples` samples whose latent sizes go round `grids`.

    `bad` puts a value, as infinity, into the latents of the samples it names. `flat` latents hold one vector of signs
    all over, which a model learns in a few steps; the others are normal noise, as are those of what is `given`, and
    the embeddings of first frames that are `image_dim` wide.
    """
    rng = np.random.default_rng(num_samples)
    text_encoder = BytesTextEncoder(TEXT_DIM, 16)
    storage = open_storage(uri)
    clear(storage)
    rows = []
    with _shards_in(storage, shard_bytes, given, image_dim is not None) as (writer, shards):
        for index in range(num_samples):
            grid = grids[index % len(grids)]
            caption = f"a {_COLOURS[index % len(_COLOURS)]} shape" + ", moving" * (index % 3)
            text = text_encoder.encode([caption])[0].numpy().astype(np.float16)
            latent = rng.standard_normal((CHANNELS, grid.t, grid.h, grid.w))
            if flat:
                latent = np.broadcast_to(np.sign(latent[:, :1, :1, :1]), latent.shape).copy()
            if bad and index in bad:
                latent[0, 0, 0, 0] = bad[index]
            sample = SampleInfo(f"sample-{index}", index, grid, len(text), 8.0, caption, f"{index}.mp4")
            pixels = (1 + 4 * (grid.t - 1), 8 * grid.h, 8 * grid.w)
            told = {task: _given_latent(index, task, latent.shape) for task in given}
            image = None if image_dim is None else _image_embedding(index, image_dim)
            writer.add(sample, latent.astype(np.float16), [text], [1.0], told, image)
            rows.append(manifest_row(sample, pixels, [(WeightedCaption(caption), len(text))]))
    null_text = null_text_bytes(text_encoder.encode([""])[0].numpy())
    storage.write_bytes(NULL_TEXT_NAME, null_text)
    with tempfile.TemporaryDirectory() as folder:
        save_encoders(Path(folder), small_autoencoder(), text_encoder)
        for path in Path(folder).iterdir():
            storage.upload(path, ENCODERS_PREFIX + path.name)
    info = DatasetInfo(
        format=FORMAT,
        num_samples=num_samples,
        latent_channels=CHANNELS,
        text_dim=TEXT_DIM,
        patch=PATCH,
        time_ratio=4,
        space_ratio=8,
        dropped=(),
        captions_cut=0,
        checksums={NULL_TEXT_NAME: checksum(null_text)},
        given_latents=given,
        image_dim=image_dim,
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest = ManifestFile(storage, Path(folder))
        manifest.add(rows)
        return publish_version(storage, info, shards, manifest)


@contextmanager
def _shards_in(
    storage: Storage, shard_bytes: int, given: tuple[GivenTask, ...], with_image: bool
) -> Iterator[tuple[ShardWriter, list[ShardEntry]]]:
    """A writer, and the index of its shards once it is left; they are called shard.00000.mds and so on."""
    shards: list[ShardEntry] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = (LocalStorage(folder / "made"), "shard", folder / "staging", shard_bytes)
        with writing_shards(*place, given, with_image=with_image) as writer:
            yield writer, shards
            made = writer.finish()
        for number, shard in enumerate(made):
            name = f"shard.{number:05d}.mds"
            storage.upload(folder / "made" / shard.raw_data.basename, name)
            shards.append(replace(shard, raw_data=replace(shard.raw_data, basename=name)))


def _given_latent(index: int, task: GivenTask, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of its own, so that the clip's own latent does not depend on what is stored beside it."""
    rng = np.random.default_rng([index, len(task)])
    return rng.standard_normal(shape).astype(np.float16)


def _image_embedding(index: int, width: int) -> np.ndarray:
    return np.random.default_rng([index, width]).standard_normal((_IMAGE_ROWS, width)).astype(np.float16)


def small_autoencoder() -> PcaAutoencoder:
    """The built-in autoencoder, fitted to two small clips of noise."""

    def clips(most: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(min(most, 2)):
            yield torch.rand(3, 5, 16, 16, generator=generator) * 2 - 1

    return fit_pca(CHANNELS, 2, clips)
