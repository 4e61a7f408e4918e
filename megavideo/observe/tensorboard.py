"""Numbers, validations, samples and stages of a run as TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavideo.errors import ConfigError
from megavideo.observe.metrics import numeric_values

if TYPE_CHECKING:
    import numpy as np

_FRAMES_PER_SAMPLE = 8


class TensorBoardSink:
    """Writes every finite number of a row as a scalar. Rows of a killed run after `resume_step` are hidden."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        """Open an event file in `folder`. Raises ConfigError where tensorboard is not installed."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._writer = _open(folder, resume_step + 1 if resume_step > 0 else None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of one step."""
        for name, value in numeric_values(values).items():
            self._writer.add_scalar(name, value, global_step=step)

    def write_validation(self, step: int, values: Mapping[str, Any]) -> None:
        """Take a row of validation.jsonl: `loss` and `loss_ema`, and both at each of `levels`, as scalars."""
        scalars = {name: values.get(name) for name in ("loss", "loss_ema")}
        for name in ("by_level", "by_level_ema"):
            for level, loss in zip(values.get("levels") or (), values.get(name) or (), strict=False):
                scalars[f"{name}/{level:.3f}"] = loss
        for name, value in numeric_values(scalars).items():
            self._writer.add_scalar(f"validation/{name}", value, global_step=step)
        self._writer.flush()

    def write_samples(self, step: int, samples: Sequence[tuple[str, np.ndarray]], scale: int = 1) -> None:
        """Take samples, (prompt, frames uint8 [T, H, W, 3]) each, as one picture; nothing where there is none."""
        if not samples:
            return
        import numpy as np

        from megavideo.observe.pictures import contact_sheet

        sheet = np.asarray(contact_sheet(samples, _FRAMES_PER_SAMPLE, scale))
        self._writer.add_image("samples", sheet, global_step=step, dataformats="HWC")
        self._writer.flush()

    def write_stage(self, step: int, text: str) -> None:
        """Take what a stage that begins with `step` is called and is made of."""
        self._writer.add_text("stage", text, global_step=step)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Hide what was taken of steps after `step`, where a run goes back to a checkpoint."""
        self._writer.close()
        self._writer = _open(self._folder, step + 1)

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()


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
