"""Which samples of a dataset a run trains on: none named as bad, none held out, and those of the sizes asked for."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megavideo.border.files import read_file
from megavideo.border.refused import Refused
from megavideo.config.schema.train import TrainRun
from megavideo.data.permutation import Integers
from megavideo.data.table.held_out import pick_held_out
from megavideo.data.table.sample_table import CHUNK, SampleTable, hashes_of
from megavideo.errors import ConfigError, DataError

Flags = npt.NDArray[np.bool_]
_MOST_NAMED = 5
_SETTINGS = {
    "excluded": "guard.exclude",
    "held_out": "validation.clips",
    "area": "data.area",
    "frames": "data.frames",
}


@dataclass(frozen=True)
class Selection:
    """What is left out, in this order: ids, held-out samples, then those outside ranges of pixels, ends included.

    `area` is height times width; `frames` counts pixel frames.
    """

    excluded: frozenset[str] = frozenset()
    num_held_out: int = 0
    area: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None

    @property
    def takes_all(self) -> bool:
        """True where nothing is left out."""
        return self == Selection()

    def digest(self) -> str:
        """A name for it."""
        value = asdict(self) | {"excluded": sorted(self.excluded)}
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LeftOut:
    """How many samples each rule left out of those that the rules before it had left.

    `unknown` is how many excluded ids no sample has; `unknown_first` are some of them.
    """

    num_samples: int
    excluded: int = 0
    held_out: int = 0
    area: int = 0
    frames: int = 0
    unknown: int = 0
    unknown_first: tuple[str, ...] = ()

    @property
    def num_left(self) -> int:
        """Samples that are trained on."""
        return self.num_samples - self.excluded - self.held_out - self.area - self.frames

    def log(self) -> None:
        """Tell what each rule left out, and of which ids nothing is known."""
        log = logging.getLogger(__name__)
        if self.num_left < self.num_samples:
            told = ", ".join(f"{setting} {getattr(self, rule)}" for rule, setting in _SETTINGS.items())
            log.info("training on %d of %d samples; left out: %s", self.num_left, self.num_samples, told)
        if self.unknown:
            named = ", ".join(self.unknown_first)
            log.warning("guard.exclude: %d of its ids are of no sample of the dataset: %s", self.unknown, named)


@dataclass(frozen=True)
class Selected:
    """The table of the samples that are trained on, the held-out samples [k], and what was left out."""

    table: SampleTable
    held_out: Integers
    left_out: LeftOut


def num_held_out(config: TrainRun) -> int:
    """How many clips of its own data a run measures and does not train on."""
    validation = config.validation
    return validation.clips if validation.every is not None and validation.uri is None else 0


def selection_of(config: TrainRun) -> Selection:
    """The selection that the settings of a run ask for; ConfigError where guard.exclude cannot be read."""
    return Selection(
        excluded=frozenset() if config.guard.exclude is None else read_ids(config.guard.exclude),
        num_held_out=num_held_out(config),
        area=config.data.area,
        frames=config.data.frames,
    )


def read_ids(path: str) -> frozenset[str]:
    """Ids of samples from a text file, one a line; blank lines are passed over. ConfigError where it is unreadable."""
    try:
        lines = read_file(Path(path).expanduser()).decode("utf-8").split("\n")
    except (OSError, Refused, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise ConfigError(
            "guard.exclude", path, f"cannot be read ({reason})", "name a text file of sample ids, one a line, or null"
        ) from error
    return frozenset(line.strip() for line in lines if line.strip())


def select(table: SampleTable, selection: Selection, on_progress: Callable[[], None] = lambda: None) -> Selected:
    """Leave out of the table what the selection says; DataError, naming the rule, where no sample is left.

    `on_progress` is called now and then. Takes a byte a sample of memory, and the new `index`, eight bytes a sample
    that is left.
    """
    keep = np.zeros(table.num_samples, np.bool_)
    for begin in range(0, len(table), CHUNK):
        keep[table.index[begin : begin + CHUNK]] = True
    left_out = LeftOut(num_samples=len(table))

    if selection.excluded:
        known = _exclude(table, keep, selection.excluded, on_progress)
        unknown = sorted(selection.excluded - known)
        left_out = replace(left_out, unknown=len(unknown), unknown_first=tuple(unknown[:_MOST_NAMED]))
        left_out = _counted(left_out, "excluded", keep, selection)
    held_out = np.zeros(0, np.int64)
    if selection.num_held_out:
        held_out = pick_held_out(table, keep, selection.num_held_out, on_progress)
        keep[held_out] = False
        left_out = _counted(left_out, "held_out", keep, selection)
    for rule, bounds in (("area", selection.area), ("frames", selection.frames)):
        if bounds is not None:
            for chunk in table.chunks():
                values = _value(rule, table.pixels[chunk])
                keep[chunk] &= (bounds[0] <= values) & (values <= bounds[1])
                on_progress()
            left_out = _counted(left_out, rule, keep, selection)
    return Selected(_taken(table, keep), held_out, left_out)


def _exclude(table: SampleTable, keep: Flags, ids: frozenset[str], on_progress: Callable[[], None]) -> frozenset[str]:
    """Clear the flags of samples with these ids; those that some sample has."""
    known, hashes = set(), hashes_of(name.encode() for name in ids)
    for chunk in table.chunks():
        for sample in (chunk.start + np.flatnonzero(np.isin(table.id_hash[chunk], hashes))).tolist():
            name = table.sample_id(sample)
            if name in ids:
                keep[sample] = False
                known.add(name)
        on_progress()
    return frozenset(known)


def _value(rule: str, pixels: npt.NDArray[np.int32]) -> Integers:
    """What a rule bounds, of samples of `pixels` [m, 3]: frames, height, width."""
    values = pixels.astype(np.int64)
    return values[:, 0] if rule == "frames" else values[:, 1] * values[:, 2]


def _counted(left_out: LeftOut, rule: str, keep: Flags, selection: Selection) -> LeftOut:
    left = int(np.count_nonzero(keep))
    before = left_out.num_left
    if not left:
        value = {
            "excluded": f"its {len(selection.excluded)} ids",
            "held_out": selection.num_held_out,
            "area": selection.area,
            "frames": selection.frames,
        }[rule]
        raise DataError(
            f"{_SETTINGS[rule]} ({value}) leaves out all of the {before} samples that the rules before it left of "
            f"{left_out.num_samples}. Remedy: widen it, or give other data"
        )
    return replace(left_out, **{rule: before - left})  # type: ignore[arg-type]


def _taken(table: SampleTable, keep: Flags) -> SampleTable:
    """The table with the rows of kept samples only; what has no row has no run."""
    index = np.empty(int(np.count_nonzero(keep)), np.int64)
    kept_before = np.zeros(len(table.run_begin), np.int64)  # rows kept before each run begins
    done = 0
    for begin in range(0, len(table), CHUNK):
        samples = table.index[begin : begin + CHUNK]
        flags = keep[samples]
        total = done + np.concatenate([[0], np.cumsum(flags)])
        inside = (table.run_begin >= begin) & (table.run_begin <= begin + len(samples))
        kept_before[inside] = total[table.run_begin[inside] - begin]
        index[done : int(total[-1])] = samples[flags]
        done = int(total[-1])
    filled = np.flatnonzero(np.diff(kept_before))
    return replace(
        table,
        index=index,
        run_begin=np.append(kept_before[filled], done),
        run_group=table.run_group[filled],
        run_volume=table.run_volume[filled],
    )
