"""Files by their suffixes: which are read, and what becomes of captioned ones that are not."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from PIL import Image, ImageFile

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.formats import is_media, is_other_media, why_not_read
from megavideo.data.clips.media import decode_frames, is_image, probe, read_image
from megavideo.data.ingest import IngestReport, ingest, read_clip_list
from megavideo.errors import DataError
from tests.data.clip_files import moving_square, write_captions, write_clip
from tests.data.seek_files import moving_texture

ALL = FiltersConfig(min_seconds=0.0, min_change=None, duplicate_bits=None)


def run(src: Path, out: Path, filters: FiltersConfig = ALL) -> IngestReport:
    return ingest(IngestRun(src=str(src), out=str(out), filters=filters))


def write_bare(path: Path, codec: str, options: str = "", format: str | None = None, rate: int = 12) -> Path:
    """A stream of 20 frames without a container."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if options:
            stream.options = {"x265-params": f"log-level=none:{options}"} if codec == "libx265" else {}
        for pixels in moving_texture(48, 64, 20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_captioned_files_that_are_not_read_are_inputs(tmp_path: Path) -> None:
    src = tmp_path / "src"
    (src / "deep").mkdir(parents=True)
    write_clip(src / "a.mp4", moving_square(9, 48, 64))
    for name in ("b.xyz", "deep/c.jxl", "d.mxf", "noname", "uncaptioned.jxl", "beside.heic"):
        (src / name).write_bytes(b"x")
    (src / "beside.txt").write_text("a caption beside it")
    captions = {"a.mp4": "a", "b.xyz": "b", "deep/c.jxl": "c", "d.mxf": "d", "noname": "n", "gone.mp4": "g"}
    write_captions(src, captions | {"deep": "a folder", str(tmp_path / "src" / "e.xyz"): "not there"})
    report = run(src, tmp_path / "out")
    assert {clip.file: (clip.kind, clip.reason) for clip in report.dropped} == {
        "b.xyz": ("suffix", "suffix .xyz is not read"),
        "beside.heic": ("suffix", "suffix .heic is not read without the package pillow-heif"),
        "d.mxf": ("suffix", "suffix .mxf is not read"),
        "deep/c.jxl": ("suffix", "suffix .jxl is not read"),
        "noname": ("suffix", "a file without a suffix is not read"),
    }
    assert (report.num_inputs, report.inputs_kept, report.inputs_dropped) == (6, 1, 5)
    assert report.dropped_by_kind == {"suffix": 5}
    assert sorted(Path(note.file).name for note in report.caption_notes) == ["e.xyz", "gone.mp4"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "suffix .jxl is not read" in page and "b.xyz" in page
    assert len((tmp_path / "out" / "dropped.jsonl").read_text().splitlines()) == 5


def test_tasks_that_share_an_ingest_count_them_once(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for number in range(4):
        write_clip(src / f"{number}.mp4", moving_square(9, 48, 64, (60 * number, 90, 200)))
    (src / "b.xyz").write_bytes(b"x")
    write_captions(src, {**{f"{number}.mp4": "a" for number in range(4)}, "b.xyz": "b"})
    cfg = IngestRun(src=str(src), out=str(tmp_path / "out"), filters=ALL)
    reports = [ingest(replace(cfg, shard=f"{share}/3")) for share in range(3)]
    assert reports[0].inputs_waiting > 0 == reports[0].num_dropped
    assert (reports[2].num_inputs, reports[2].inputs_kept, reports[2].inputs_dropped) == (5, 4, 1)


def test_a_file_given_alone_says_why_it_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jxl").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.jxl: not a video or image: suffix \.jxl is not read\. Remedy"):
        run(tmp_path / "a.jxl", tmp_path / "out")


def test_a_caption_beside_several_files_is_told(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for name in ("a.mp4", "a.png", "b.mp4", "b.png", "c.mp4"):
        clip = moving_square(9, 48, 64, (20 * len(name), ord(name[0]), 200))
        if name.endswith("png"):
            Image.fromarray(clip[0]).save(src / name)
        else:
            write_clip(src / name, clip)
    for name in ("a", "b", "c"):
        (src / f"{name}.txt").write_text(f"text of {name}")
    (note,) = run(src, tmp_path / "out").caption_notes
    assert (
        Path(note.file).name == "a.txt"
        and note.reason == "is the caption of a.mp4 and of a.png; 1 others are shared as well"
    )
    write_captions(src, {"a.png": "a picture of its own"})
    (note,) = run(src, tmp_path / "out").caption_notes
    assert Path(note.file).name == "b.txt" and note.reason == "is the caption of b.mp4 and of b.png"


def test_still_and_animated_avif(tmp_path: Path) -> None:
    frames = moving_square(6, 48, 64)
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(tmp_path / "still.avif", quality=95)
    pictures[0].save(tmp_path / "moving.avif", save_all=True, append_images=pictures[1:], duration=50, quality=95)
    assert is_image(tmp_path / "still.avif") and not is_image(tmp_path / "moving.avif")
    assert np.abs(read_image(tmp_path / "still.avif").astype(int) - frames[0]).mean() < 4
    info = probe(tmp_path / "moving.avif")
    assert (info.frames, info.fps, info.is_animation) == (6, 20.0, True)
    assert np.abs(decode_frames(tmp_path / "moving.avif", 2, 4).astype(int) - frames[2:]).mean() < 4


@pytest.mark.parametrize(
    ("name", "codec"), [("a.h264", "libx264"), ("a.264", "libx264"), ("a.265", "libx265"), ("a.hevc", "libx265")]
)
def test_a_stream_without_a_container_has_the_rate_that_it_tells(tmp_path: Path, name: str, codec: str) -> None:
    path = write_bare(tmp_path / name, codec, "bframes=2:crf=8", "h264" if codec == "libx264" else "hevc")
    info = probe(path)
    assert (info.frames, info.fps, info.width, info.height) == (20, 12.0, 64, 48)
    truth = np.stack(list(moving_texture(48, 64, 20)))
    assert np.abs(decode_frames(path, 0, 20).astype(int) - truth).mean() < 12


def test_a_stream_that_tells_no_rate_is_refused(tmp_path: Path) -> None:
    path = write_bare(tmp_path / "a.265", "libx265", "vui-timing-info=0", "hevc")
    with pytest.raises(DataError, match=r"a\.265: .* tells no frame rate\. Remedy: .*ffmpeg"):
        probe(path)


def test_y4m(tmp_path: Path) -> None:
    path = write_bare(tmp_path / "a.y4m", "rawvideo", format="yuv4mpegpipe")
    write_captions(tmp_path, {"a.y4m": "a"})
    run(path, tmp_path / "out")
    (row,) = read_clip_list(tmp_path / "out").rows
    assert (row.frames, row.fps) == (20, 12.0) and row.anchor is not None
    truth = np.stack(list(moving_texture(48, 64, 20)))
    assert np.abs(decode_frames(path, 0, 20).astype(int) - truth).mean() < 12


def test_heic_is_read_where_its_package_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pillow-heif, which makes Pillow take a PNG for HEIF."""
    path = tmp_path / "a.heic"
    Image.fromarray(moving_square(1, 48, 64)[0]).save(path, "PNG")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert not is_media(path) and is_other_media(path) and "pillow-heif" in why_not_read(path)
    stand_in = ModuleType("pillow_heif")
    stand_in.__spec__ = ModuleSpec("pillow_heif", None)
    stand_in.register_heif_opener = lambda: Image.OPEN.setdefault("HEIF", Image.OPEN["PNG"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    assert is_media(path) and not is_other_media(path) and is_image(path)
    assert read_image(path).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", b"%!PS-Adobe-3.0\n"),
        ("a.jpg", b"P6 2 2 255\n" + bytes(12)),
        ("a.mp4", b"ffconcat version 1.0\nfile 'b.mp4'\n"),
    ],
)
def test_other_formats_than_those_of_the_list_are_not_opened(tmp_path: Path, name: str, data: bytes) -> None:
    write_clip(tmp_path / "b.mp4", moving_square(9, 48, 64))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="damaged or not"):
        probe(tmp_path / name)


def write_large_png(path: Path, side: int) -> Path:
    """A PNG of one colour: few bytes, many pixels."""
    Image.new("1", (side, side)).save(path)
    return path


def test_too_many_pixels_are_dropped_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tmp_path / "src"
    src.mkdir()
    write_large_png(src / "large.png", 9000)
    write_clip(src / "a.mp4", moving_square(9, 48, 64))
    write_clip(src / "b.mp4", moving_square(9, 96, 128, (20, 90, 220)))
    shutil.copy(src / "b.mp4", src / "c.mkv")
    write_captions(src, {name: name for name in ("large.png", "a.mp4", "b.mp4")})
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    report = run(src, tmp_path / "out")
    monkeypatch.undo()
    said = "has frames of 9000x9000 pixels, more than filters.max_pixels=67108864"
    assert [(clip.file, clip.kind, clip.reason) for clip in report.dropped if clip.kind != "caption"] == [
        ("large.png", "large", said)
    ]
    report = run(src, tmp_path / "out", replace(ALL, max_pixels=4000))  # from what was measured
    assert {clip.file: clip.reason for clip in report.dropped}["b.mp4"] == (
        "has frames of 128x96 pixels, more than filters.max_pixels=4000"
    )
    assert report.dropped_by_kind["large"] == 3 and report.inputs_kept == 1


def test_a_higher_limit_reads_what_was_too_large(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    write_clip(src / "a.mp4", moving_square(9, 48, 64))
    write_clip(src / "b.mp4", moving_square(9, 96, 128, (20, 90, 220)))
    write_captions(src, {"a.mp4": "a", "b.mp4": "b"})
    kept = [run(src, tmp_path / "out", replace(ALL, max_pixels=most)).inputs_kept for most in (4000, 20000)]
    assert kept == [1, 2]
