"""What was found out about a dataset and the run that is to train on it; every field is JSON-ready."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.data.dataset.rates import FrameCounts, Rates


@dataclass(frozen=True)
class Histogram:
    """Samples by a value: `counts` [n] between `edges` [n + 1]."""

    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Reason:
    """A sample, clip or file by `name`, and what is said of it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Packs:
    """Packs of steps spread evenly over the run.

    `fill` is the share of `tokens_per_pack` that is real tokens. `imbalance` is how much more attention the busiest
    data-parallel rank of a step has than the mean of all, by squared lengths: 0 where all have the same.
    """

    steps_looked_at: int
    packs_looked_at: int
    fill_mean: float
    fill_worst: float
    samples_per_pack: float
    max_samples: int
    imbalance_mean: float
    imbalance_worst: float


@dataclass(frozen=True)
class Latents:
    """Mean and standard deviation of all finite latents that were read, and the latter of each channel."""

    mean: float
    std: float
    channel_std: tuple[float, ...]


@dataclass(frozen=True)
class Shards:
    """The shards of a dataset: `num_bytes` of all as the index says, `checked` of `count` read and hashed.

    Where they were read, `same_content` is how many samples have the latent of an earlier one, `non_finite` how many
    have a latent with a value that is none, `non_finite_text` how many an encoded caption, and `constant` how many a
    latent of one value; else these and `latents` are None. `bad` are missing or damaged, or hold other samples than the
    manifest says. `left_out` were not looked at, because too many before them were bad.
    """

    count: int
    num_bytes: int
    checked: int
    left_out: int
    bad: tuple[Reason, ...]
    same_content: int | None
    same_content_first: tuple[Reason, ...]
    non_finite: int | None
    non_finite_first: tuple[str, ...]
    non_finite_text: int | None = None
    non_finite_text_first: tuple[str, ...] = ()
    constant: int | None = None
    constant_first: tuple[str, ...] = ()
    latents: Latents | None = None


@dataclass(frozen=True)
class DatasetReport:
    """A dataset before a run on it.

    `rates` are frames a second of its videos, and `frames` tells what it shows of its clips' frames.
    `dropped` are samples that fit no pack, `not_encoded` clips that were ingested and not encoded: the first of each.
    Bytes are of samples as they lie in the shards; a second's are what `tokens_per_second_per_gpu` takes, each sample
    counted once for all GPUs that work on it. `faults` are what would make the run fail or drop too much; empty where
    there are none. `warnings` are what a run passes over. `page` is the page that shows all this, where one was asked
    for.
    """

    data: str
    version: int
    samples: int
    images: int
    videos: int
    video_seconds: float
    rates: Rates | None
    frames: FrameCounts
    tokens: int
    tokens_per_sample: Histogram
    aspect: Histogram
    packs: Packs | None
    steps: int
    steps_per_epoch: float | None
    epochs: float | None
    dropped_count: int
    dropped_share: float
    dropped: tuple[Reason, ...]
    not_encoded_count: int
    not_encoded: tuple[Reason, ...]
    bytes_per_sample: float
    bytes_per_second_per_gpu: float | None
    bytes_per_second: float | None
    captions_cut: int
    captions_cut_share: float
    same_id: int
    same_id_first: tuple[str, ...]
    shards: Shards
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    page: str | None
