"""Which checkpoints of a run are kept, and why; the others are removed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

from megavideo.checkpoint.manifest import Manifest, step_name
from megavideo.checkpoint.place import Place
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.errors import MegavideoError


@dataclass(frozen=True)
class Summary:
    """Of a checkpoint, what decides whether it is kept."""

    step: int
    validation_loss: float | None = None
    stage_end: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> Summary:
        """The summary of a manifest."""
        return cls(manifest.step, manifest.validation_loss, manifest.stage_end)

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return step_name(self.step)


def reasons_to_keep(found: Iterable[Summary], config: CheckpointConfig) -> dict[str, tuple[str, ...]]:
    """Why each checkpoint is kept (`last`, `every`, `best`, `stage end`), by name; one without a reason may go."""
    rows = sorted(found, key=lambda row: row.step)
    scored = [(row.validation_loss, row.step) for row in rows if row.validation_loss is not None]
    best = {step for loss, step in sorted(pair for pair in scored if math.isfinite(pair[0]))[: config.keep_best]}
    last = {row.step for row in rows[-config.keep_last :]}
    reasons = {}
    for row in rows:
        given = (
            ("last", row.step in last),
            ("every", config.keep_every is not None and row.step % config.keep_every == 0),
            ("best", row.step in best),
            ("stage end", row.stage_end and config.keep_stage_ends),
        )
        reasons[row.name] = tuple(reason for reason, holds in given if holds)
    return reasons


class Retention:
    """Removes from a place what the settings do not keep. Manifests are read once."""

    def __init__(self, place: Place, config: CheckpointConfig) -> None:
        self._place = place
        self._config = config
        self._known: dict[str, Summary] = {}

    def apply(self, newest: Manifest) -> None:
        """Remove what need not be kept beside `newest`; what cannot be read or removed stays, and is told."""
        self._known[Summary.of(newest).name] = Summary.of(newest)
        try:
            names = self._place.names()
        except (OSError, MegavideoError) as error:
            return _tell("old checkpoints", error)
        for name, reasons in reasons_to_keep(self._read(names), self._config).items():
            if not reasons:
                try:
                    self._place.remove(name)
                except (OSError, MegavideoError) as error:
                    _tell(name, error)
        return None

    def wanted(self, more: Iterable[Manifest]) -> list[Manifest]:
        """Those of `more` that would stay, were they put beside what is there. Raises what the place does."""
        found = {Summary.of(manifest): manifest for manifest in more}
        reasons = reasons_to_keep({*self._read(self._place.names()), *found}, self._config)
        return [manifest for summary, manifest in found.items() if reasons[summary.name]]

    def _read(self, names: Iterable[str]) -> list[Summary]:
        found = []
        for name in names:
            try:
                if name not in self._known:
                    self._known[name] = Summary.of(self._place.manifest(name))
                found.append(self._known[name])
            except (OSError, MegavideoError) as error:
                _tell(name, error)
        return found


def _tell(what: str, error: Exception) -> None:
    logging.getLogger(__name__).warning("%s: not removed, whether or not to be kept (%s)", what, error)
