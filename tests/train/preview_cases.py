"""What one rank does and tells in `test_preview.py`: samples drawn between two training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavideo.config.schema.train import TrainRun
from megavideo.config.schema.validation import ValidationConfig
from megavideo.encoders.folder import save_encoders
from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.errors import MegavideoError
from megavideo.observe.run_folder import RunFolder
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.processes.distributed import Launch
from megavideo.parity.spec import ParitySpec
from megavideo.testing.dataset import small_autoencoder
from megavideo.testing.parity_training import parity_training
from megavideo.train.validation.preview import Previewer

PROMPTS = ("a red shape", "a blue shape, moving", "something that is green")
# of odd sides, so that more is sampled than is kept, and no multiple of the ranks that share tokens
ASKED = ValidationConfig(
    samples_every=1, prompts=PROMPTS, sample_steps=3, guidance=3.0, frames=6, height=39, width=40
)  # fmt: skip
RATIOS = (4, 8)


def make_folder(root: Path, spec: ParitySpec) -> RunFolder:
    """A run folder as far as sampling needs it."""
    folder = RunFolder(root)
    folder.encoders.mkdir(parents=True)
    save_encoders(folder.encoders, small_autoencoder(), BytesTextEncoder(spec.model.text_dim, 16))
    (root / "sampling.json").write_text('{"fps": 8.0}')
    return folder


def config_of(spec: ParitySpec, layout: str) -> TrainRun:
    """The training run with samples."""
    return dataclasses.replace(spec.as_training(layout), validation=ASKED)


def run_layouts(launch: Launch, spec: ParitySpec, layouts: Sequence[str], root: str) -> dict[str, Any]:
    """An account of each layout, whose samples lie under its name."""
    return {layout: _account(launch, spec, layout, Path(root) / layout) for layout in layouts}


def _account(launch: Launch, spec: ParitySpec, layout: str, root: Path) -> dict[str, Any]:
    plain, mixed = (_losses(launch, spec, layout, place) for place in (None, root))
    return {"plain": plain, "mixed": mixed}


def _losses(launch: Launch, spec: ParitySpec, layout: str, root: Path | None) -> list[float]:
    with parity_training(launch, spec, layout) as training:
        previewer = None if root is None else _previewer(training.engine, spec, layout, root, launch)
        losses = []
        for step in range(spec.steps):
            losses.append(training.step(step)[0].loss)
            if previewer is not None:
                previewer.draw(step + 1)
        if previewer is not None:
            previewer.close()
        return losses


def _previewer(engine: Engine, spec: ParitySpec, layout: str, root: Path, launch: Launch) -> Previewer:
    return Previewer(config_of(spec, layout), engine, RATIOS, RunFolder(root), launch.device)


def without_encoders(launch: Launch, spec: ParitySpec, root: str) -> str:
    """The message of the error that a rank is given where the prompts cannot be encoded."""
    with parity_training(launch, spec, "dp2-zero1") as training:
        try:
            _previewer(training.engine, spec, "dp2-zero1", Path(root), launch)
        except MegavideoError as error:
            return str(error)
    return ""
