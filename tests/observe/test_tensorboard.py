"""What a run shows in TensorBoard beside its scalars, read back from the event files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megavideo.observe.metrics import MetricsWriter
from megavideo.observe.tensorboard import TensorBoardSink


def _events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder)).Reload()


def test_validation_samples_and_stages(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    row = {"loss": 0.5, "loss_ema": None, "levels": [0.25, 0.75], "by_level": [0.4, 0.6], "by_level_ema": None}
    sink.write_stage(1, "images_256")
    sink.write_validation(20, row)
    sink.write_samples(20, np.full((32, 192, 3), 200, np.uint8))
    sink.close()
    events = _events(tmp_path)
    scalars = {name: [(event.step, round(event.value, 6)) for event in events.Scalars(name)]
               for name in events.Tags()["scalars"]}  # fmt: skip
    assert scalars == {
        "validation/loss": [(20, 0.5)],
        "validation/by_level/0.250": [(20, 0.4)],
        "validation/by_level/0.750": [(20, 0.6)],
    }
    (picture,) = events.Images("samples")
    size = Image.open(io.BytesIO(picture.encoded_image_string)).size
    assert (picture.step, size) == (20, (192, 32))
    assert events.Tags()["tensors"] == ["stage/text_summary"]


def test_going_back_hides_later_steps(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl", sinks=[TensorBoardSink(tmp_path / "tb")]) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, {"loss": 1.0})
        writer.rewind(2)
        writer.write(3, {"loss": 0.5})
    events = _events(tmp_path / "tb")
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 0.5)]
