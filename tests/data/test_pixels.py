"""What a viewer sees is what is read: HDR, interlaced video, alpha, animated images, pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.media import Anchor, decode_frames, is_image, iter_frames, iter_video, probe
from megavideo.data.clips.tone_map import to_sdr
from megavideo.data.ingest import ClipRow, IngestReport, ingest, read_clip_list
from tests.data.clip_files import moving_square, write_captions, write_clip
from tests.data.test_ingest_cuts import texture

PQ, HLG, BT2020, LIMITED = 16, 18, 9, 1  # ITU-T H.273
ALL = FiltersConfig(min_seconds=0.0, min_change=None, duplicate_bits=None)


def run(path: Path, out: Path, filters: FiltersConfig = ALL) -> tuple[IngestReport, list[ClipRow]]:
    """Ingest one file."""
    write_captions(path.parent, {path.name: "a"})
    report = ingest(IngestRun(src=str(path), out=str(out), filters=filters))
    return report, list(read_clip_list(out).rows)


def write_hdr(
    path: Path, colours: Sequence[Sequence[float]], transfer: int, size: int = 64, codec: str = "libx265"
) -> Path:
    """A video of one frame a colour, R'G'B' 0..1 of BT.2020."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p10le"
        stream.options = {"x265-params": "log-level=none:qp=2"} if codec == "libx265" else {"crf": "2"}
        context = stream.codec_context
        context.color_primaries = context.colorspace = BT2020
        context.color_trc, context.color_range = transfer, LIMITED
        for colour in colours:
            picture = np.broadcast_to(np.round(np.array(colour) * 65535).astype(np.uint16), (size, size, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace="BT2020", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pq_light(code: float) -> float:
    """SMPTE ST 2084, by its own constants, in cd/m2."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = code ** (1 / m2)
    return 10000.0 * float((max(power - c1, 0.0) / (c2 - c3 * power)) ** (1 / m1))


def pq_code(light: float) -> float:
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (light / 10000.0) ** m1
    return float(((c1 + c2 * power) / (1 + c3 * power)) ** m2)


def level(light: np.ndarray) -> np.ndarray:
    """Levels of light of BT.709 in cd/m2, by the formulas of BT.2390 and BT.1886."""
    largest = min(float(light.max()), 1000.0)
    code, white = pq_code(largest) / pq_code(1000.0), pq_code(203.0) / pq_code(1000.0)
    knee = 1.5 * white - 0.5
    if code >= knee:
        t = (code - knee) / (1 - knee)
        code = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * white
    mapped = pq_light(code * pq_code(1000.0))
    return 255.0 * np.clip(light * mapped / max(largest, 1e-9) / 203.0, 0.0, 1.0) ** (1 / 2.4)


MATRIX = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
COLOURS = [(0.0, 0.0, 0.0), (0.3, 0.3, 0.3), (0.58, 0.58, 0.58), (0.75, 0.75, 0.75), (0.6, 0.45, 0.3), (0.4, 0.55, 0.5)]


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
@pytest.mark.parametrize("colour", COLOURS)
def test_the_tone_curve_is_that_of_the_standards(transfer: str, colour: tuple[float, float, float]) -> None:
    if transfer == "pq":
        light = np.array([pq_light(value) for value in colour])
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.array([v * v / 3 if v <= 0.5 else (np.exp((v - c) / a) + b) / 12 for v in colour])
        light = 1000.0 * max(float(scene @ [0.2627, 0.678, 0.0593]), 1e-9) ** 0.2 * scene
    pixels = np.round(np.array([[colour]]) * 65535).astype(np.uint16)
    assert np.abs(to_sdr(pixels, transfer)[0, 0] - level(MATRIX @ light)).max() <= 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize(("transfer", "name", "white"), [(PQ, "pq", 0.5807), (HLG, "hlg", 0.75)])
def test_hdr_is_mapped_to_sdr_or_dropped(tmp_path: Path, transfer: int, name: str, white: float) -> None:
    """Reference white comes out bright, and colours as full as they are: read as SDR both were dull."""
    path = write_hdr(tmp_path / "a.mp4", [(white,) * 3, (0.5, 0.3, 0.2), (0.2, 0.45, 0.3), (0.9,) * 3], transfer)
    frames = decode_frames(path, 0, 4)[:, 32, 32].astype(int)
    assert frames[0].min() >= 205 and frames[0].max() - frames[0].min() <= 3
    assert frames[3].min() >= 235
    assert frames[1].max() - frames[1].min() > 1.2 * (0.5 - 0.2) * 255
    assert probe(path).transfer == name
    report, (row,) = run(path, tmp_path / "out")
    assert row.transfer == name and report.treated == {f"{name.upper()} mapped to SDR": 1}
    write_clip(tmp_path / "b.mp4", moving_square(9, 48, 64))
    write_captions(tmp_path, {"a.mp4": "a", "b.mp4": "b"})
    filters = FiltersConfig(min_seconds=0.0, hdr="drop")
    report = ingest(IngestRun(src=str(tmp_path), out=str(tmp_path / "out2"), filters=filters))
    assert {clip.file: clip.kind for clip in report.dropped} == {"a.mp4": "hdr"}


@pytest.mark.parametrize(
    ("transfer", "name", "white", "shown"), [(PQ, "pq", 0.5807, 231), (HLG, "hlg", 0.75, 231), (1, "sdr", 0.8, 204)]
)
def test_an_hdr_image_is_mapped_too(tmp_path: Path, transfer: int, name: str, white: float, shown: int) -> None:
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV has no encoder of AV1")
    path = write_hdr(tmp_path / "a.avif", [(white,) * 3], transfer, codec="libsvtav1")
    info = probe(path)
    assert (info.is_image, info.transfer, info.frames) == (True, name, 1)
    assert np.abs(decode_frames(path, 0, 1)[0, 32, 32].astype(int) - shown).max() <= 3
    _, (row,) = run(path, tmp_path / "out")
    assert row.transfer == name


def write_interlaced(path: Path, frames: int = 12) -> Path:
    """A bar that moves four pixels from one field to the next."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.options = {"flags": "+ildct+ilme", "g": "12", "b": "4000000"}
        for index in range(frames):
            picture = np.full((64, 128, 3), 60, np.uint8)
            for field in (0, 1):
                left = (8 * index + 4 * field) % 100
                picture[field::2, left : left + 20] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def combed(pictures: np.ndarray) -> float:
    """The share of pixels that both their neighbours above and below are far from, to the same side."""
    grey = pictures.astype(int).mean(axis=-1)
    above, here, below = grey[:, :-2], grey[:, 1:-1], grey[:, 2:]
    return float(((here - above) * (here - below) > 900).mean())


def test_interlaced_frames_are_made_whole_or_dropped(tmp_path: Path) -> None:
    path = write_interlaced(tmp_path / "a.mpg", 60)
    with av.open(str(path)) as container:
        woven = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    frames = list(iter_video(path))
    whole = np.stack([frame.rgb() for frame in frames])
    assert whole.shape == woven.shape and combed(woven[4:]) > 0.03 > 10 * combed(whole[4:])
    report, (row,) = run(path, tmp_path / "out")
    assert row.is_interlaced and row.frames == 60 and report.treated == {"deinterlaced": 1}
    # Each frame depends on its neighbours; a sought one does as well.
    for start in (36, 37, 44, 48, 59):
        anchor = Anchor(start, frames[start].seconds, frames[start].digest(), row.frame_marks[2 * start :])
        assert np.array_equal(next(iter_frames(path, start, 1, anchor)), whole[start])
        assert np.array_equal(next(iter_frames(path, start, 1)), whole[start])
    assert not probe(write_clip(tmp_path / "b.mp4", moving_square(9, 48, 64))).is_interlaced
    write_captions(tmp_path, {"a.mpg": "a", "b.mp4": "b"})
    filters = FiltersConfig(min_seconds=0.0, interlaced="drop")
    report = ingest(IngestRun(src=str(tmp_path), out=str(tmp_path / "out2"), filters=filters))
    assert {clip.file: clip.kind for clip in report.dropped} == {"a.mpg": "interlaced"}


def transparent(frames: int = 6) -> np.ndarray:
    """A blue square that moves over what is transparent and, unseen, red; uint8 [T, H, W, 4]."""
    video = np.zeros((frames, 64, 96, 4), np.uint8)
    video[..., 0] = 255
    for index in range(frames):
        video[index, 16:48, 8 + 6 * index : 40 + 6 * index] = (0, 0, 255, 255)
    return video


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "png", "rgba"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mkv", "ffv1", "yuva420p"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_what_is_transparent_lies_over_white(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        for picture in transparent():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        container.mux(stream.encode())
    (first, *_) = frames = list(iter_video(tmp_path / name))
    assert len(frames) == 6
    for picture in (first.rgb(), first.small(48)):
        assert picture[-1, -1].min() >= 250
        inside = picture[picture.shape[0] // 2, picture.shape[1] // 4]
        assert inside[2] > 230 and inside[:2].max() < 30
    report, (row,) = run(tmp_path / name, tmp_path / "out")
    assert row.has_alpha and report.treated == {"alpha put over white": 1}


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_an_animated_image_is_a_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    pictures = [Image.fromarray(frame) for frame in transparent(8)]
    options = {"lossless": True} if suffix == "webp" else {"disposal": 2} if suffix == "gif" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, loop=0, **options)
    assert not is_image(path)
    info = probe(path)
    assert (info.frames, info.width, info.height, info.is_animation) == (8, 96, 64, True)
    assert info.fps == pytest.approx(10.0, rel=1e-3)
    video = decode_frames(path, 0, 8)
    assert video[:, -1, -1].min() >= 250
    for index in range(8):
        assert np.abs(video[index, 32, 24 + 6 * index].astype(int) - (0, 0, 255)).max() < 20
    report, (row,) = run(path, tmp_path / "out")
    assert row.is_animation and report.num_images == 0 and "animated image read as video" in report.treated


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_one_picture_in_a_format_of_animations_is_an_image(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(texture(0, 1, 64, 96)[0]).save(tmp_path / f"a.{suffix}")
    info = probe(tmp_path / f"a.{suffix}")
    assert (info.is_image, info.is_animation, info.frames) == (True, False, 1)
    report, (row,) = run(tmp_path / f"a.{suffix}", tmp_path / "out")
    assert row.is_image and report.num_images == 1 and report.treated == {}


def test_pages_that_are_left_out_are_told(tmp_path: Path) -> None:
    pages = [Image.fromarray(frame) for frame in texture(0, 3, 64, 96)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    report, (row,) = run(tmp_path / "a.tiff", tmp_path / "out")
    assert (row.pages, row.is_image, report.treated) == (3, True, {"first page of several": 1})
    assert "first page of several" in (tmp_path / "out" / "report.html").read_text()


def test_a_hole_in_time_is_told(tmp_path: Path) -> None:
    times = [40 * number + (2500 if number >= 20 else 0) for number in range(40)]
    report, rows = run(write_clip(tmp_path / "a.mkv", texture(0, 40, 48, 64), times=times), tmp_path / "out")
    assert [row.holes for row in rows] == [1, 1]
    assert report.treated == {"of a file with a hole in time": 2}


@pytest.mark.parametrize(("height", "width", "matrix"), [(720, 1280, "ITU709"), (64, 96, "ITU601")])
def test_a_matrix_that_is_not_told_is_the_one_that_players_take(
    tmp_path: Path, height: int, width: int, matrix: str
) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        picture = np.broadcast_to(np.array([200, 40, 60], np.uint8), (height, width, 3))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range="MPEG")
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (frame,) = iter_video(tmp_path / "a.mkv")
    assert frame.raw.colorspace == 2
    assert np.abs(frame.rgb()[0, 0].astype(int) - (200, 40, 60)).max() <= 2
