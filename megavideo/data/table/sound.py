"""What makes a dataset useless for training although its files are whole: values that no step can compute with."""

from __future__ import annotations

import numpy as np

from megavideo.data.dataset.dataset import NULL_TEXT_NAME, LatentDataset
from megavideo.data.table.sample_table import SampleTable
from megavideo.errors import DataError

_NAMED = 5


def check_sound(dataset: LatentDataset, table: SampleTable) -> None:
    """Raise DataError where a run on the planned samples of `table` could only fail, for what guilty thing."""
    for fault in (null_text_fault(dataset), size_fault(dataset.uri, table)):
        if fault is not None:
            raise DataError(fault)


def null_text_fault(dataset: LatentDataset) -> str | None:
    """Of an encoding of the empty caption that is not finite: it takes the place of captions all over a run."""
    strange = int((~np.isfinite(dataset.null_text)).sum())
    if not strange:
        return None
    return (
        f"{dataset.uri}/{NULL_TEXT_NAME}: {strange} of {dataset.null_text.size} values of the empty caption's encoding "
        "are not finite, and it takes the place of every caption that is dropped. Remedy: encode again with "
        "overwrite=true, or restore the file from a copy"
    )


def size_fault(uri: str, table: SampleTable) -> str | None:
    """Of samples whose latent has no values."""
    return _named(uri, table, (table.latent < 1).any(axis=1), "have a latent of no values")


def _named(uri: str, table: SampleTable, strange: np.ndarray, what: str) -> str | None:
    """The fault of those of the planned samples that are marked in `strange` [N]; None where none is."""
    samples = np.sort(table.index[strange[table.index]])
    if not len(samples):
        return None
    first = ", ".join(f"{table.sample_id(sample)} ({_value(table, sample)})" for sample in samples[:_NAMED].tolist())
    more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
    told = f"{uri}: {len(samples)} of {len(table)} samples {what}: {first}{more}"
    return f"{told}. Remedy: encode these clips again, or leave them out"


def _value(table: SampleTable, sample: int) -> str:
    return f"latent {table.latent[sample].tolist()}, {table.fps[sample]:g} frames a second"
