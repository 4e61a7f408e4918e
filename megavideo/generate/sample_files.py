"""Sampled latents to files in a thread, while the caller goes on: for samples that are drawn during training."""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from megavideo.data.clips.write_video import write_video
from megavideo.encoders.folder import load_autoencoder
from megavideo.errors import NumericsError
from megavideo.generate.videos import sheet_of, to_pixels
from megavideo.observe.whole_file import write_file

_MOST_WAITING = 2
_SHOWN_SIDES = (1600, 2400)  # of a sheet as it is shown: its file has all pixels
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """What all samples of a run have in common: prompts, pixels (frames, height, width), and frames a second."""

    prompts: tuple[str, ...]
    size: tuple[int, int, int]
    fps: float


@dataclass(frozen=True)
class ShownSamples:
    """The samples of a step as one picture, uint8 [H, W, 3], no larger than a screen or two."""

    step: int
    sheet: np.ndarray


class SampleFiles:
    """Writes `folder/step_00000500` for step 500: 00.mp4 and so on, contact_sheet.png and prompts.json, their prompts.

    A folder appears whole, or not at all. What goes wrong is a warning. Samples that come while the decoder is far
    behind are left out, with a warning. `encoders` is the folder of the run's encoders; the autoencoder works where it
    always does, on the GPU where there is one, in what memory the training leaves.
    """

    def __init__(self, folder: Path, encoders: Path, drawn: Drawn) -> None:
        self._folder = folder
        self._encoders = encoders
        self._drawn = drawn
        self._waiting: queue.Queue[tuple[int, Sequence[torch.Tensor]] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._written: deque[ShownSamples] = deque(maxlen=_MOST_WAITING + 2)

    def write(self, step: int, latents: Sequence[torch.Tensor]) -> None:
        """Have latents [C, T, H, W], one a prompt, decoded and written; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="megavideo-samples", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((step, latents))
        except queue.Full:
            _log.warning("step %d: no samples are written, as the decoder is still at work on earlier ones", step)

    def written(self) -> list[ShownSamples]:
        """What was written since the last call, in order; of more than a few steps the last ones."""
        shown = []
        while self._written:
            shown.append(self._written.popleft())
        return shown

    def close(self) -> None:
        """Wait until everything is written; to be called before the process ends. More may be written afterwards."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            step, latents = item
            try:
                self._written.append(ShownSamples(step, self._write(step, latents)))
            except NumericsError as error:
                _log.warning("step %d: no samples are written: %s", step, error)
            except Exception:  # noqa: BLE001 - whatever it is, training goes on
                _log.warning("step %d: its samples could not be decoded or written", step, exc_info=True)

    def _write(self, step: int, latents: Sequence[torch.Tensor]) -> np.ndarray:
        """The sheet as it is to be shown."""
        drawn, place = self._drawn, self._folder / f"step_{step:08d}"
        autoencoder = load_autoencoder(self._encoders)  # each time, so that it takes no memory in between
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            videos = [to_pixels(autoencoder.decode(latent), drawn.size) for latent in latents]
            for number, video in enumerate(videos):
                write_video(temporary / f"{number:02d}.mp4", video, drawn.fps)
            sheet = sheet_of(list(zip(drawn.prompts, videos, strict=True)))
            sheet.save(temporary / "contact_sheet.png", "PNG")
            write_file(temporary / "prompts.json", json.dumps(drawn.prompts, ensure_ascii=False, indent=2).encode())
            shutil.rmtree(place, ignore_errors=True)  # of the steps before a resume
            os.replace(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _log.info("samples of step %d: %s", step, place)
        sheet.thumbnail(_SHOWN_SIDES, Image.Resampling.LANCZOS)
        return np.asarray(sheet)
