"""Repeated frames, dissolves, fades and holes in time, in clips whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megavideo.config.schema.clip_filters import CutsConfig, FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.media import iter_video
from megavideo.data.ingest import ClipRow, IngestReport, ingest, read_clip_list
from tests.data.clip_files import write_captions, write_clip
from tests.data.seek_files import write_video_file
from tests.data.test_ingest_cuts import texture

ALL = FiltersConfig(min_seconds=0.0, min_change=None, duplicate_bits=None)


def run(folder: Path, path: Path, **settings: object) -> tuple[IngestReport, list[ClipRow]]:
    """Ingest one clip, keeping all that can be read."""
    write_captions(path.parent, {path.name: "a"})
    report = ingest(IngestRun(src=str(path), out=str(folder / "out"), **{"filters": ALL, **settings}))  # type: ignore[arg-type]
    return report, list(read_clip_list(folder / "out").rows)


def smooth(seed: int, frames: int, still_frames: int = 6) -> np.ndarray:
    """A texture without sharp edges, as pictures are, that moves a pixel every `still_frames` frames."""
    import cv2

    moving = np.repeat(texture(seed, frames // still_frames + 1, 72, 96), still_frames, axis=0)[:frames]
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 2.0) for frame in moving])


def pieces(report: IngestReport, rows: list[ClipRow]) -> list[tuple[int, int, str]]:
    """First frame, frames and outcome of every piece."""
    kept = [(row.start, row.frames, "kept") for row in rows]
    return sorted(kept + [(clip.start, clip.frames, clip.kind) for clip in report.dropped])


@pytest.mark.parametrize(("step", "repeats"), [(6, 3), (12, 3), (9, 5), (4, 2)])
def test_held_frames_are_no_cuts(tmp_path: Path, step: int, repeats: int) -> None:
    """Eight, six or twelve frames a second that are held to 24 or 30: every step looked like a cut."""
    frames = np.repeat(texture(0, 16, 72, 96, step=step), repeats, axis=0)
    report, rows = run(tmp_path, write_clip(tmp_path / "a.mp4", frames, fps=30 if repeats == 5 else 24))
    assert pieces(report, rows) == [(0, len(frames), "kept")]


def test_cuts_between_held_frames_are_found_to_the_frame(tmp_path: Path) -> None:
    shots = [texture(seed, count, 72, 96) for seed, count in enumerate((9, 4, 12, 7))]
    frames = np.repeat(np.concatenate(shots), 3, axis=0)
    report, rows = run(tmp_path, write_clip(tmp_path / "a.mp4", frames, fps=24))
    assert pieces(report, rows) == [(0, 27, "kept"), (27, 12, "kept"), (39, 36, "kept"), (75, 21, "kept")]


def test_still_pictures_one_after_the_other(tmp_path: Path) -> None:
    """A picture that is shown for a second is not a held frame."""
    frames = np.concatenate([np.repeat(texture(seed, 1, 72, 96), 24, axis=0) for seed in range(4)])
    report, rows = run(tmp_path, write_clip(tmp_path / "a.mp4", frames, fps=24))
    assert pieces(report, rows) == [(start, 24, "kept") for start in (0, 24, 48, 72)]


@pytest.mark.parametrize("length", [6, 12, 24, 40])
def test_a_dissolve_is_left_out(tmp_path: Path, length: int) -> None:
    """The frames in which both shots are seen are dropped, and nothing else."""
    first, second = smooth(0, 30 + length).astype(float), smooth(1, 30 + length).astype(float)
    share = np.arange(1, length)[:, None, None, None] / length
    mixed = first[30 : 30 + length - 1] * (1 - share) + second[: length - 1] * share
    frames = np.concatenate([first[:30], mixed, second[length - 1 :][:30]])
    path = write_clip(tmp_path / "a.mp4", np.clip(frames + 0.5, 0, 255).astype(np.uint8), fps=25)
    report, rows = run(tmp_path, path)
    (one, two), (lost,) = rows, report.dropped
    assert (lost.kind, one.start, two.start + two.frames) == ("transition", 0, len(frames))
    assert abs(one.frames - 30) <= 2 and abs(two.start - (30 + length - 1)) <= 2
    assert (lost.start, lost.start + lost.frames) == (one.frames, two.start)
    assert "dissolve or fade" in lost.reason
    report, rows = run(tmp_path, path, cuts=CutsConfig(transitions=False))
    assert not [clip for clip in report.dropped if clip.kind == "transition"]


@pytest.mark.parametrize("length", [5, 12, 30])
def test_fades_through_black_are_left_out(tmp_path: Path, length: int) -> None:
    """A fade out, black, and a fade in are one transition; a fade out at the end is one too."""
    light = np.arange(length, 0, -1)[:, None, None, None] / (length + 1)
    shots = [smooth(seed, 60).astype(float) for seed in range(2)]
    out = [shot[30 : 30 + length] * light for shot in shots]
    into = shots[1][:length] * light[::-1]
    frames = np.concatenate([shots[0][:30], out[0], np.zeros((6, 72, 96, 3)), into, shots[1][:30], out[1]])
    path = write_clip(tmp_path / "a.mp4", np.clip(frames + 0.5, 0, 255).astype(np.uint8), fps=25)
    report, rows = run(tmp_path, path)
    ends = [0, 30, 36 + 2 * length, 66 + 2 * length, 66 + 3 * length]
    found = pieces(report, rows)
    assert [kind for _, _, kind in found[:4]] == ["kept", "transition", "kept", "transition"][: len(found)]
    assert len(rows) == 2
    assert all(abs(start - end) <= 3 for (start, _, _), end in zip(found, ends, strict=False))


def test_slow_motion_and_light_are_no_dissolves(tmp_path: Path) -> None:
    """A slow pan over coarse blocks mixes neighbours at low resolution, and a lamp that dims mixes with black."""
    pan = smooth(3, 40, still_frames=1)
    dimmed = (pan[-1] * np.linspace(1, 0.3, 40)[:, None, None, None]).astype(np.uint8)
    report, rows = run(tmp_path, write_clip(tmp_path / "a.mp4", np.concatenate([pan, dimmed]), fps=25))
    assert pieces(report, rows) == [(0, 80, "kept")]


def test_a_hole_in_time_ends_a_clip(tmp_path: Path) -> None:
    times = [40 * number + (2500 if number >= 20 else 0) for number in range(50)]
    path = write_clip(tmp_path / "a.mkv", texture(0, 50, 72, 96), times=times)
    report, rows = run(tmp_path, path)
    assert pieces(report, rows) == [(0, 20, "kept"), (20, 30, "kept")]
    assert [row.fps for row in rows] == pytest.approx([25.0, 25.0], abs=0.01)
    report, rows = run(tmp_path, path, cuts=CutsConfig(hole_seconds=3.0))
    assert pieces(report, rows) == [(0, 50, "kept")]


def test_a_slow_clock_has_no_holes(tmp_path: Path) -> None:
    """One picture a second is a rate, and so is one that changes by and by."""
    times = [*range(0, 8000, 1000), *range(8000, 9000, 100), *range(9000, 15000, 1500)]
    path = write_clip(tmp_path / "a.mkv", texture(0, len(times), 72, 96), times=times)
    report, rows = run(tmp_path, path, cuts=CutsConfig(hole_seconds=2.0))
    assert pieces(report, rows) == [(0, len(times), "kept")]
    path = write_clip(tmp_path / "a.mkv", texture(0, 9, 72, 96), times=list(range(0, 9000, 1000)))
    report, rows = run(tmp_path, path)
    assert pieces(report, rows) == [(0, 9, "kept")]


def test_a_clock_that_begins_anew_ends_a_clip(tmp_path: Path) -> None:
    part = write_video_file(tmp_path / "part.ts", "libx264").read_bytes()
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.ts").write_bytes(part + part)
    report, rows = run(tmp_path, tmp_path / "src" / "a.ts")
    assert pieces(report, rows) == [(0, 56, "kept"), (56, 56, "kept")]


def test_memory_does_not_grow_with_the_length_of_a_shot(tmp_path: Path) -> None:
    """Frames wait for some seconds at most, also where nothing changes or all is black."""
    from megavideo.data.clips.frame import Traits
    from megavideo.data.ingest.seen import SeenFrame
    from megavideo.data.ingest.shots import CutRule, mark_shots

    given = 0

    def frames() -> object:
        nonlocal given
        for index in range(3000):
            given = index
            level = (0, 90, index % 200)[index // 1000]
            small = np.full((18, 32, 3), level, np.uint8)
            blocks = np.full((2, 4), float(level), np.float32)
            yield SeenFrame(index, index / 30, True, Traits(32, 18, 1.0, 30.0), "", small, blocks, 0.0, None)

    most = max(given - seen.index for seen, _ in mark_shots(frames(), CutRule(3.0, 15.0, True, 0.5)))  # type: ignore[arg-type]
    assert most < 10 * 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pancake.mkv", "train.mp4", "horse.mp4", "kitten.mp4", "hiker.mp4"])
@pytest.mark.parametrize(("rate", "held"), [(8, 24), (6, 30), (5, 30)])
def test_real_shots_that_are_held_have_no_cuts(
    real_clips: Path, tmp_path: Path, name: str, rate: int, held: int
) -> None:
    frames = list(iter_video(real_clips / name))
    times = np.array([frame.seconds for frame in frames])
    wanted = np.arange(times[0], times[-1], 1 / rate)
    chosen = [frames[int(np.abs(times - second).argmin())].small(256) for second in wanted]
    height, width = (side // 2 * 2 for side in chosen[0].shape[:2])
    path = tmp_path / "a.mp4"
    write_clip(path, np.repeat([frame[:height, :width] for frame in chosen], held // rate, axis=0), fps=held)
    _, rows = run(tmp_path, path)
    assert len(rows) == 1
