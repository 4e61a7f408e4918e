"""Numbers, validations, samples and stages of a run as TensorBoard events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavideo.border.secrets import without_secrets
from megavideo.errors import ConfigError
from megavideo.observe.metrics import numeric_values

if TYPE_CHECKING:
    import numpy as np


class TensorBoardSink:
    """Writes every finite number of a row as a scalar. Rows of a killed run after `resume_step` are hidden.

    What cannot be written, as on a full disk, ends no run: it is logged, and the rest of this start is left out.
    """

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        """Open an event file in `folder`. Raises ConfigError where tensorboard is not installed."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._failed = False
        self._writer = _open(folder, resume_step + 1 if resume_step > 0 else None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of one step."""
        with self._writing() as writer:
            for name, value in numeric_values(values).items():
                writer.add_scalar(name, value, global_step=step)

    def write_validation(self, step: int, values: Mapping[str, Any]) -> None:
        """Take a row of validation.jsonl: `loss` and `loss_ema`, and both at each of `levels`, as scalars."""
        scalars = {name: values.get(name) for name in ("loss", "loss_ema")}
        for name in ("by_level", "by_level_ema"):
            for level, loss in zip(values.get("levels") or (), values.get(name) or (), strict=False):
                scalars[f"{name}/{level:.3f}"] = loss
        with self._writing() as writer:
            for name, value in numeric_values(scalars).items():
                writer.add_scalar(f"validation/{name}", value, global_step=step)
            writer.flush()

    def write_samples(self, step: int, sheet: np.ndarray) -> None:
        """Take the samples of a step as one picture, uint8 [H, W, 3]."""
        with self._writing() as writer:
            writer.add_image("samples", sheet, global_step=step, dataformats="HWC")
            writer.flush()

    def write_stage(self, step: int, text: str) -> None:
        """Take what a stage that begins with `step` is called and is made of."""
        with self._writing() as writer:
            writer.add_text("stage", without_secrets(text), global_step=step)
            writer.flush()

    def rewind(self, step: int) -> None:
        """Hide what was taken of steps after `step`, where a run goes back to a checkpoint."""
        self.close()
        self._writer, self._failed = _open(self._folder, step + 1), False

    def close(self) -> None:
        """Write out what is held back."""
        with self._writing() as writer:
            writer.close()

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """The writer, whose thread ends with its first error, which each later call would raise again."""
        if self._failed:
            yield _Nowhere()
            return
        try:
            yield self._writer
        except OSError as error:
            self._failed = True
            logging.getLogger(__name__).warning("no more TensorBoard events in %s: %s", self._folder, error)


class _Nowhere:
    """Takes every call of a writer that has failed."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _open(folder: Path, purge_step: int | None) -> Any:
    """A writer into a new event file, which hides what older files of the folder have from `purge_step` on."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "observe.tensorboard",
            True,
            "the package tensorboard is not installed",
            "run `pip install tensorboard`, or set observe.tensorboard=false",
        ) from error
    return SummaryWriter(log_dir=str(folder), purge_step=purge_step)
