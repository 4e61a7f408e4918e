"""Numbers of a run at Weights & Biases, when asked for."""

from __future__ import annotations

import importlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavideo.border.files import KB, read_file
from megavideo.border.refused import Refused
from megavideo.border.secrets import Secrets, without_secrets
from megavideo.errors import ConfigError, DataError
from megavideo.observe.metrics import numeric_values
from megavideo.observe.whole_file import write_file

if TYPE_CHECKING:
    import numpy as np

_ID_NAME = "wandb_id"
_ID = re.compile(r"[0-9a-f]{16}")


class WandbSink:
    """Sends every finite number of a row. A run folder is one run there, also after a restart or a move.

    Its id is drawn at the first start and kept in the file `wandb_id` of the folder.
    """

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Open or continue the run of `folder`.

        Raises ConfigError where wandb is missing or refuses to start, and DataError where the id is damaged or cannot
        be kept.
        """
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
        identity = _identity(folder / _ID_NAME)
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                id=identity,
                resume="allow",
                dir=str(folder),
                config=Secrets.of_process().hide_all(config),
            )
        except wandb.Error as error:
            raise ConfigError(
                "observe.wandb",
                True,
                f"Weights & Biases did not start ({without_secrets(str(error))})",
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


def _identity(path: Path) -> str:
    """The id in the file, which is made where there is none."""
    try:
        if not path.exists():
            write_file(path, f"{secrets.token_hex(8)}\n".encode())
        found = read_file(path, KB).decode("ascii", "replace").strip()
    except (OSError, Refused) as error:
        raise DataError(f"{path}: cannot be read or written ({error}). Remedy: check the run folder") from error
    if not _ID.fullmatch(found):
        raise DataError(
            f"{path}: holds no id of a Weights & Biases run, which has 16 hexadecimal digits. Remedy: write the id of "
            "the run to go on with, or remove the file to begin another one there"
        )
    return found
