"""What a dataset holds as far as training and sampling will touch it: faults, and what is strange and no fault."""

from __future__ import annotations

from collections.abc import Iterator

from megavideo.data.dataset.dataset import ENCODERS_PREFIX, LatentDataset
from megavideo.data.table.sample_table import SampleTable
from megavideo.data.table.sound import null_text_fault
from megavideo.encoders.folder import DESCRIPTION_NAME
from megavideo.evaluation.dataset_report import Shards

_NAMED = 5
_USUAL_STD, _USUAL_MEAN = (0.2, 5.0), 2.0  # of latents, which encoders standardise to about 1 and 0


def content_faults(dataset: LatentDataset, table: SampleTable, shards: Shards) -> Iterator[str]:
    """What would make every step fail, or nothing be learnt."""
    if (fault := null_text_fault(dataset)) is not None:
        yield fault
    if shards.non_finite_text:
        named = ", ".join(shards.non_finite_text_first[:_NAMED])
        yield (
            f"{shards.non_finite_text} samples have an encoded caption with a value that is not finite: {named}. "
            "Remedy: encode these clips again"
        )
    if shards.constant is not None and shards.constant == len(table) > 0:
        yield (
            f"all {len(table)} latents are constant, so that there is nothing to learn. Remedy: check the clips and "
            "the autoencoder, and encode again with overwrite=true"
        )


def content_warnings(dataset: LatentDataset, table: SampleTable, shards: Shards) -> Iterator[str]:
    """What a run passes over, and its owner should know."""
    if not dataset.storage.exists(ENCODERS_PREFIX + DESCRIPTION_NAME):
        yield (
            f"{dataset.uri}/{ENCODERS_PREFIX}{DESCRIPTION_NAME} is missing: training works without, and its samples "
            "cannot be drawn, neither during the run nor later. Remedy: restore the folder from a copy, or encode again"
        )
    if shards.constant and shards.constant < len(table):
        named = ", ".join(shards.constant_first[:_NAMED])
        yield f"{shards.constant} latents are constant, as of clips of one colour: {named}"
    statistics = shards.latents
    if statistics is None:
        return
    flat = [number for number, std in enumerate(statistics.channel_std) if std < 1e-4]
    if flat and len(flat) < len(statistics.channel_std):
        yield f"channels {flat} of {len(statistics.channel_std)} of the latents are constant, and tell nothing"
    low, high = _USUAL_STD
    if not low <= statistics.std <= high or not abs(statistics.mean) <= _USUAL_MEAN:
        yield (
            f"latents have mean {statistics.mean:.3g} and standard deviation {statistics.std:.3g}, where noise has 0 "
            "and 1, and encoders standardise to about that. Remedy: check latents_mean and latents_std of the "
            "autoencoder"
        )
