"""Reading from the middle of a file gives what reading from its beginning gives, whatever the file's index says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips import media
from megavideo.data.clips.formats import is_media
from megavideo.data.clips.frame import Frame
from megavideo.data.clips.media import iter_frames, iter_video
from megavideo.data.clips.resize import FrameSize, FrameWindow
from megavideo.data.clips.seek import Anchor
from megavideo.data.ingest import ingest, read_clip_list
from megavideo.encoders.encode.clips import PlannedClip, read_clip
from megavideo.errors import DataError
from tests.data.clip_files import write_captions
from tests.data.seek_files import (
    ALL,
    FRAMES,
    SOME,
    call_samples_sync,
    damaged_files,
    drop_sync_samples,
    write_video_file,
)


def differences(path: Path, starts: range, with_digest: bool = True) -> tuple[int, int]:
    """Of clips of two frames that begin at `starts`: how many were read from there, and how many of them wrongly."""
    frames = list(iter_video(path))
    marks = "".join(frame.digest()[:2] for frame in frames)
    wrong = tried = 0
    for start in (start for start in starts if start + 2 <= len(frames)):
        anchor = Anchor(start, frames[start].seconds)
        if with_digest:
            anchor = replace(anchor, digest=frames[start].digest(), marks=marks[2 * start :])
        found = list(iter_frames(path, start, 2, anchor))
        wrong += not np.array_equal(np.stack(found), np.stack([frame.rgb() for frame in frames[start : start + 2]]))
        tried += 1
    return tried, wrong


@pytest.mark.parametrize("all_keys", [False, True], ids=["index", "broken index"])
@pytest.mark.parametrize(("codec", "suffix"), SOME)
def test_a_sought_frame_is_that_of_the_whole_file(tmp_path: Path, codec: str, suffix: str, all_keys: bool) -> None:
    path = write_video_file(tmp_path / f"a.{suffix}", codec, all_keys)
    for with_digest in (True, False):
        assert differences(path, range(32, FRAMES, 3), with_digest)[1] == 0


FEW = [("mpeg4", "mkv"), ("mpeg4", "avi"), ("libx264", "mov"), ("h263", "3gp")]


@pytest.mark.parametrize(("codec", "suffix"), FEW)
def test_a_damaged_index_changes_nothing(tmp_path: Path, codec: str, suffix: str) -> None:
    paths = list(damaged_files(tmp_path, codec, suffix))
    assert len(paths) >= 4
    for path in paths[2:]:
        assert differences(path, range(33, FRAMES, 5)) == (5, 0), path.name


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "suffix"), ALL)
def test_every_codec_and_container(tmp_path: Path, codec: str, suffix: str) -> None:
    """Of every frame that can be sought, with each kind of damage: none differs."""
    compared = num_files = 0
    for path in damaged_files(tmp_path, codec, suffix):
        for with_digest in (True, False):
            tried, wrong = differences(path, range(32, FRAMES), with_digest)
            assert wrong == 0, (path.name, with_digest)
            compared += 2 * tried
        num_files += 1
    print(f"{codec} in {suffix}: {compared} frames of {num_files} files compared, 0 differ")
    assert compared > 0


def test_an_mp4_without_sync_samples(tmp_path: Path) -> None:
    path = drop_sync_samples(write_video_file(tmp_path / "a.mp4", "mpeg4"))
    assert differences(path, range(32, FRAMES)) == (23, 0)


def test_a_3gp_that_calls_p_frames_key_frames(tmp_path: Path) -> None:
    path = call_samples_sync(write_video_file(tmp_path / "a.3gp", "h263"), [1, 27, 36, 48])
    assert differences(path, range(32, FRAMES)) == (23, 0)


def test_what_is_encoded_is_what_was_ingested(tmp_path: Path) -> None:
    """Of the frames of a clip in the middle of a file with a broken index."""
    src = tmp_path / "src"
    src.mkdir()
    path = call_samples_sync(write_video_file(src / "a.3gp", "h263"), [1, 27, 36, 48])
    write_captions(src, {"a.3gp": "a"})
    ingest(IngestRun(src=str(src), out=str(tmp_path / "out")))
    (row,) = read_clip_list(tmp_path / "out").rows
    frames = list(iter_video(path))
    assert (row.start_digest, row.frame_marks[80:82]) == (frames[0].digest(), frames[40].digest()[:2])
    row = replace(row, start=40, start_seconds=frames[40].seconds, start_digest=frames[40].digest(), frames=16)
    row = replace(row, frame_marks=row.frame_marks[80:])
    size = FrameSize(row.height, row.width, (0.0, 0.0, float(row.width), float(row.height)))
    read = read_clip(PlannedClip(row, src, FrameWindow(2, 9), size))
    assert np.array_equal(read.numpy(), np.stack([frame.rgb() for frame in frames[42:51]]))


def test_another_picture_at_the_right_time_is_not_taken(tmp_path: Path) -> None:
    """A digest that is another one leads to reading from the beginning."""
    path = write_video_file(tmp_path / "a.mp4", "libx264")
    frames = list(iter_video(path))
    found = next(iter_frames(path, 40, 1, Anchor(40, frames[41].seconds, frames[40].digest())))
    assert np.array_equal(found, frames[40].rgb())


@pytest.mark.parametrize(("broken", "most"), [(False, 60), (True, 120)])
def test_seeking_saves_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool, most: int) -> None:
    """Where the index leads to no key frame, reading starts farther back, and not at the beginning."""
    path = write_video_file(tmp_path / "a.mp4", "mpeg4", frames=600)
    if broken:
        drop_sync_samples(path)
    frames = list(iter_video(path))[580:]
    marks = "".join(frame.digest()[:2] for frame in frames)
    anchor = Anchor(580, frames[0].seconds, frames[0].digest(), marks)
    monkeypatch.setattr("megavideo.data.clips.seek._BACK_SECONDS", (0.0, 1.0))
    decoded, whole = 0, media.decoded

    def counted(*args: object) -> Iterator[Frame]:
        nonlocal decoded
        for frame in whole(*args):  # type: ignore[arg-type]
            decoded += 1
            yield frame

    monkeypatch.setattr(media, "decoded", counted)
    found = list(iter_frames(path, 580, 4, anchor))
    assert np.array_equal(np.stack(found), np.stack([frame.rgb() for frame in frames[:4]]))
    assert 0 < decoded < most


def test_a_file_that_ends_before_says_where(tmp_path: Path) -> None:
    path = write_video_file(tmp_path / "a.mp4", "libx264")
    with pytest.raises(DataError, match=f"has {FRAMES} frames, and 3 from 147 are asked for"):
        list(iter_frames(path, 147, 3))


@pytest.mark.parametrize(("step", "least"), [(90, 15), pytest.param(7, 190, marks=pytest.mark.slow)])
def test_real_clips(real_clips: Path, step: int, least: int) -> None:
    total = 0
    for path in sorted(real_clips.iterdir()):
        if is_media(path) and path.name != "corrupted.mp4":
            tried, wrong = differences(path, range(32, 400, step))
            total += tried
            assert wrong == 0, path
    print(f"{2 * total} frames of real clips compared, 0 differ")
    assert total >= least
