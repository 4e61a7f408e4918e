"""Numbers of a run at Weights & Biases, when asked for."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megavideo.errors import ConfigError
from megavideo.observe.metrics import numeric_values


class WandbSink:
    """Sends every finite number of a row. A run folder is one run there, also after a restart."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Open or continue the run of `folder`. Raises ConfigError where wandb is missing or refuses to start."""
        try:
            # By name: this module has the package's own name.
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                "observe.wandb",
                True,
                "the package wandb is not installed",
                "run `pip install wandb` and `wandb login`, or set observe.wandb=false",
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
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
        self._run.log(numeric_values(values), step=step)

    def close(self) -> None:
        """Write out what is held back."""
        self._run.finish()
