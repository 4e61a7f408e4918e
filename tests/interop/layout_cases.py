"""What a rank does in `test_export_layouts.py`: a run's weights into an engine of a layout, and saved from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.restore import restore_weights
from megavideo.checkpoint.write import write_checkpoint
from megavideo.config.schema.model import ModelConfig
from megavideo.parallel.engines.fragments import owned_fragments
from megavideo.parallel.processes.distributed import Launch
from megavideo.parity.process import build_parity_engine
from megavideo.parity.spec import ParitySpec


@dataclass(frozen=True, kw_only=True)
class WanSpec(ParitySpec):
    """A parity run of a model that Wan's network can be."""

    @property
    def model(self) -> ModelConfig:
        """Without what Wan has not."""
        return replace(super().model, fps_conditioning=False, place_embedding=False)


SPEC = WanSpec(packs_per_step=2, steps=1, num_layers=2)


def save_as(launch: Launch, layout: str, run: str, folder: str) -> Any:
    """Save the run's weights and averages under the layout, and tell the files."""
    engine = build_parity_engine(SPEC, layout, launch)
    engine.create_state()
    checkpoint = find_checkpoint(Path(run))
    restore_weights(lambda: CheckpointReader(checkpoint), engine)
    manifest = CheckpointReader(checkpoint).manifest
    header = Header(manifest.step, layout, manifest.config)
    saved = write_checkpoint(Path(folder) / "checkpoints", header, owned_fragments(engine), keep=1)
    engine.close()
    return sorted(path.name for path in saved.iterdir())
