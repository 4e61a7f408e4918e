"""A run folder as training leaves one, with stages, faults, validations and samples, but without training."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megavideo.data.clips.write_video import write_video
from megavideo.observe.faults import FaultLog
from megavideo.observe.metrics import MetricsWriter
from megavideo.observe.run_folder import RunFolder
from megavideo.observe.stages import StageLog, StageRow
from megavideo.observe.validations import ValidationLog

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROMPTS = ("a red ball rolls to the right", "a blue square falls", "a green ring rises")
LEVELS = [0.125, 0.375, 0.625, 0.875]


@dataclass(frozen=True)
class MadeStage:
    """A stage of `steps` steps of `seconds` each, whose loss falls from `high` to `low`."""

    name: str
    steps: int
    seconds: float
    high: float
    low: float
    areas: tuple[int, ...]
    frames: tuple[int, ...]


STAGES = (
    MadeStage("images_256", 120, 1.1, 1.0, 0.42, (65536,), (1,)),
    MadeStage("clips_256", 160, 2.6, 0.62, 0.33, (65536,), (1, 17, 49)),
    MadeStage("clips_512", 100, 5.2, 0.41, 0.29, (65536, 262144), (1, 17, 49, 97)),
)


def make_run(root: Path, *, steps: int | None = None, samples: bool = True, seed: int = 0) -> RunFolder:
    """Write the folder of a run of all STAGES that has made `steps` steps (None: all of them)."""
    folder = RunFolder(root)
    folder.checkpoints.mkdir(parents=True)
    stages = {stage.name: {"train": {"steps": stage.steps}} for stage in STAGES}
    folder.config.write_text(yaml.safe_dump({"name": root.name, "train": {"steps": STAGES[0].steps}, "stages": stages}))
    folder.code_version.write_text(json.dumps({"megavideo": "0.1.0", "git_commit": "abc", "packages": {"torch": "2"}}))
    total = sum(stage.steps for stage in STAGES)
    _Maker(folder, total if steps is None else steps, seed).write(samples)
    return folder


class _Maker:
    def __init__(self, folder: RunFolder, steps: int, seed: int) -> None:
        self.folder = folder
        self.steps = steps
        self.rng = np.random.default_rng(seed)
        self.now = BEGAN
        self.metrics = MetricsWriter(folder.metrics)
        self.faults = FaultLog(folder.faults, 0, clock=lambda: self.now)
        self.stages = StageLog(folder.stages)
        self.validations = ValidationLog(folder.validation)

    def write(self, samples: bool) -> None:
        first = 1
        for number, stage in enumerate(STAGES, 1):
            if first > self.steps:
                break
            self.stages.begin(StageRow(stage.name, number, len(STAGES), first, None, stage.steps, "dp8-zero1"))
            last = first + stage.steps - 1
            for step in range(first, min(last, self.steps) + 1):
                self._step(stage, step, (step - first + 1) / stage.steps)
            if last <= self.steps:
                self.stages.end(last)
            first = last + 1
        self.metrics.close()
        if samples:
            self._samples()

    def _step(self, stage: MadeStage, step: int, share: float) -> None:
        loss = stage.low + (stage.high - stage.low) * float(np.exp(-4 * share)) + 0.02 * float(self.rng.normal())
        skipped, spike = step in (57, 58), step == 203
        saved = 0.35 if step % 50 == 1 and step > 1 else None  # the save after the step before
        seconds = stage.seconds * (1 + 0.04 * abs(float(self.rng.normal()))) + (saved or 0.0)
        tokens = 8 * 32768 - int(self.rng.integers(0, 4000))
        self.now += timedelta(seconds=seconds)
        row: dict[str, Any] = {
            "loss": float("nan") if skipped else loss * (3.0 if spike else 1.0),
            "grad_norm": float("nan") if skipped else 0.2 + 0.8 * loss + 0.05 * float(self.rng.gamma(1.0)),
            "learning_rate": 1e-4 * min(1.0, step / 40),
            "skipped": skipped or spike,
            "spike": spike,
            "epoch": step // 90,
            "tokens": tokens,
            "fill": tokens / (8 * 32768),
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
            "mfu": 0.41 / (seconds / stage.seconds),
            "stage": stage.name,
            "host_memory_gb": 3.1 + step / 400,
            "device_memory_gb": 41.5 + 6 * STAGES.index(stage),
            "stream_megabytes_per_second": 30.0 / stage.seconds,
            "stream_wait_seconds": max(0.0, 0.02 * float(self.rng.normal())),
            "stream_retries": int(step % 70 == 0),
        }
        if saved is not None:
            row["saved_blocked_seconds"] = saved
            self._checkpoint(step - 1)
        self.metrics.write(step, row)
        self._faults(step, skipped, spike, loss)
        if step % 20 == 0:
            self._validate(stage, step, loss)

    def _faults(self, step: int, skipped: bool, spike: bool, loss: float) -> None:
        sample = {"sample_id": f"clip-{step:05d}", "visit": 1, "timestep": 812.5, "grid": [5, 32, 32]}
        if skipped:
            self.faults.write(step, "non_finite", loss=float("nan"), samples=[sample | {"error": float("nan")}])
        if spike:
            self.faults.write(step, "spike", loss=3 * loss, samples=[sample | {"error": 4.25}])
        if step == 140:
            self.faults.write(step, "rollback", back_to=100, passed_over=[139, 140])
        if step == 150:
            self.faults.write(step, "straggler", rank=5, host="node3", reason="1.6 times the median")
        if step == 230:
            self.faults.write(step, "restart", reason="went on from step 200 on 8 processes")

    def _validate(self, stage: MadeStage, step: int, loss: float) -> None:
        by_level = [loss * (1.5 - level) for level in LEVELS]
        cells = [
            {"level": level, "area": area, "frames": frames, "loss": value * (1 + 0.003 * frames), "count": 4,
             "loss_ema": 0.97 * value * (1 + 0.003 * frames)}
            for level, value in zip(LEVELS, by_level, strict=True) for area in stage.areas for frames in stage.frames
        ]  # fmt: skip
        self.validations.write(
            step,
            stage.name,
            {
                "loss": 1.03 * loss,
                "loss_ema": loss,
                "levels": LEVELS,
                "by_level": by_level,
                "by_level_ema": [0.97 * value for value in by_level],
                "cells": cells,
            },
        )

    def _checkpoint(self, step: int) -> None:
        place = self.folder.checkpoints / f"step_{step:08d}"
        place.mkdir()
        (place / "manifest.json").write_text("{}")
        os.utime(place / "manifest.json", (self.now.timestamp(), self.now.timestamp()))

    def _samples(self) -> None:
        for step in range(100, self.steps + 1, 100):
            place = self.folder.samples / f"step_{step:08d}"
            place.mkdir(parents=True)
            (place / "prompts.json").write_text(json.dumps(list(PROMPTS)))
            for number in range(len(PROMPTS)):
                write_video(place / f"{number:02d}.mp4", _clip(number, step, self.rng), 8.0)


def _clip(number: int, step: int, rng: np.random.Generator) -> np.ndarray:
    """A square that moves, uint8 [9, 64, 96, 3], under noise that falls with the step."""
    frames = np.full((9, 64, 96, 3), 40, np.float32)
    for time in range(9):
        left = 4 + 8 * time
        frames[time, 20:44, left : left + 20, number] = 230
    frames += rng.normal(0, 6000 / step, frames.shape)
    return frames.clip(0, 255).astype(np.uint8)
