"""Writes the benchmark's training corpus: real mp4 and png files with captions, whose truth is known."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from megavideo.data.clips.write_video import write_video
from megavideo.evaluation.shapes.render import Scene, draw_scene, render
from megavideo.evaluation.shapes.spec import NUM_CLIP_WORDINGS, NUM_IMAGE_WORDINGS, Combination, caption, split


@dataclass(frozen=True)
class Truth:
    """One file of the corpus: its name inside the folder, its caption, and the scene that it shows."""

    file: str
    caption: str
    scene: Scene

    @property
    def combination(self) -> Combination:
        """The colour, shape and motion that the file shows."""
        return self.scene.combination


def render_corpus(folder: Path, num_clips: int, num_images: int, seed: int) -> list[Truth]:
    """Render `num_clips` mp4 clips and `num_images` png images of trained combinations into `folder`.

    The combinations take turns, so that each is shown equally often; held-out ones never appear. `captions.jsonl`
    (rows of `file` and `caption`) is written last. The same arguments give the same pictures; file i depends on
    (seed, i) only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truths = plan_corpus(num_clips, num_images, seed)
    for truth in truths:
        frames = render(truth.scene)
        if truth.combination.motion is None:
            _write_png(folder / truth.file, frames[0])
        else:
            write_video(folder / truth.file, frames, truth.scene.fps)
    rows = "".join(json.dumps({"file": truth.file, "caption": truth.caption}) + "\n" for truth in truths)
    temporary = folder / f".captions.jsonl.{os.getpid()}.tmp"
    temporary.write_text(rows, encoding="utf-8")
    os.replace(temporary, folder / "captions.jsonl")
    return truths


def plan_corpus(num_clips: int, num_images: int, seed: int) -> list[Truth]:
    """Return what `render_corpus` writes, without writing it."""
    trained = split().trained
    truths = []
    for number in range(num_clips + num_images):
        is_image = number >= num_clips
        rng = np.random.default_rng([seed, number])
        combination = trained[number % len(trained)]
        if is_image:
            combination = replace(combination, motion=None)
        wording = int(rng.integers(NUM_IMAGE_WORDINGS if is_image else NUM_CLIP_WORDINGS))
        name = f"image_{number - num_clips:05d}.png" if is_image else f"clip_{number:05d}.mp4"
        truths.append(Truth(name, caption(combination, wording), draw_scene(combination, rng)))
    return truths


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as png, under a temporary name first."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(pixels).save(temporary, format="png")
    os.replace(temporary, path)
