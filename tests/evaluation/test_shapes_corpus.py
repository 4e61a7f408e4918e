"""The corpus: real files that read back, inside the picture, repeatable, with captions that tell the truth."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from megavideo.evaluation.shapes.corpus import plan_corpus, render_corpus
from megavideo.evaluation.shapes.render import CLIP_FRAMES, CLIP_RATES, CLIP_SIZES, render
from megavideo.evaluation.shapes.spec import split


def test_files_captions_and_sizes(tmp_path: Path) -> None:
    truths = render_corpus(tmp_path, num_clips=30, num_images=6, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert rows == [{"file": truth.file, "caption": truth.caption} for truth in truths]
    assert {path.name for path in tmp_path.iterdir()} == {truth.file for truth in truths} | {"captions.jsonl"}
    for truth in truths:
        if truth.combination.motion is None:
            assert Image.open(tmp_path / truth.file).size == (truth.scene.width, truth.scene.height)
            continue
        with av.open(str(tmp_path / truth.file)) as container:
            stream = container.streams.video[0]
            assert (stream.height, stream.width) == (truth.scene.height, truth.scene.width)
            assert stream.average_rate == truth.scene.fps
            assert sum(1 for _ in container.decode(stream)) == truth.scene.num_frames


def test_plan_is_varied_balanced_and_repeatable() -> None:
    truths = plan_corpus(num_clips=240, num_images=24, seed=0)
    assert truths == plan_corpus(num_clips=240, num_images=24, seed=0)
    assert truths[:100] == plan_corpus(num_clips=100, num_images=0, seed=0)
    assert truths[0] != plan_corpus(num_clips=1, num_images=0, seed=1)[0]
    clips = [truth for truth in truths if truth.combination.motion is not None]
    assert {(t.scene.height, t.scene.width) for t in clips} == set(CLIP_SIZES)
    assert {t.scene.num_frames for t in clips} == set(CLIP_FRAMES)
    assert {t.scene.fps for t in clips} == set(CLIP_RATES)
    trained = split().trained
    assert {sum(t.combination == combination for t in clips) for combination in trained} == {10}
    assert not {t.combination for t in clips} & set(split().held_out)
    assert all(t.scene.num_frames == 1 for t in truths if t.combination.motion is None)


def test_shape_stays_inside_and_moves_visibly() -> None:
    for truth in plan_corpus(num_clips=60, num_images=0, seed=5):
        scene = truth.scene
        travel = np.abs(np.subtract(scene.end, scene.start))
        assert travel.max() >= 12 and travel.min() < 1e-9
        for centre in (scene.start, scene.end):
            assert min(centre) >= scene.diameter / 2
            assert centre[0] <= scene.width - scene.diameter / 2
            assert centre[1] <= scene.height - scene.diameter / 2
        frames = render(scene)
        edge = np.concatenate([frames[:, 0], frames[:, -1]], axis=1).astype(int)
        assert (edge.max(-1) - edge.min(-1)).max() < 20  # nothing coloured touches the upper and lower edge
