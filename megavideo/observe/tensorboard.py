"""Numbers of a run as TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megavideo.errors import ConfigError
from megavideo.observe.metrics import numeric_values


class TensorBoardSink:
    """Writes every finite number of a row as a scalar. Rows of a killed run after `resume_step` are hidden."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        """Open an event file in `folder`. Raises ConfigError where tensorboard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "observe.tensorboard",
                True,
                "the package tensorboard is not installed",
                "run `pip install tensorboard`, or set observe.tensorboard=false",
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        purge = resume_step + 1 if resume_step > 0 else None
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=purge)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of one step."""
        for name, value in numeric_values(values).items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()
