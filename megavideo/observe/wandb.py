"""Numbers of a run at Weights & Biases, when asked for."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavideo.errors import ConfigError
from megavideo.observe.metrics import numeric_values

if TYPE_CHECKING:
    import numpy as np


class WandbSink:
    """Sends every finite number of a row. A run folder is one run there, also after a restart."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Open or continue the run of `folder`. Raises ConfigError where wandb is missing or refuses to start."""
        try:
            # By name: this module has the package's own name.
            self._wandb = wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                "observe.wandb",
                True,
                "the package wandb is not installed",
                "run `pip install wandb` and `wandb login`, or set observe.wandb=false",
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        self._step = 0
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        try:
            self._run = wandb.init(
                project=project, name=name, id=identity, resume="allow", dir=str(folder), config=dict(config)
            )
        except wandb.Error as error:
            raise ConfigError(
                "observe.wandb",
                True,
                f"Weights & Biases did not start ({error})",
                "run `wandb login`, set WANDB_MODE=offline, or set observe.wandb=false",
            ) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of one step."""
        self._step = step
        self._run.log(numeric_values(values), step=step)

    def write_samples(self, step: int, sheet: np.ndarray) -> None:
        """Take the samples of a step as one picture, uint8 [H, W, 3].

        They come when later steps have been sent, and W&B takes no row of an earlier one: it is the caption that tells.
        """
        picture = self._wandb.Image(sheet, caption=f"step {step}")
        self._run.log({"samples": picture}, step=max(step, self._step))

    def close(self) -> None:
        """Write out what is held back."""
        self._run.finish()
