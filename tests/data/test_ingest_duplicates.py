"""Near-duplicates: what is one clip in two guises and what is not, and that the order of reading plays no part."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.media import decode_frames, probe
from megavideo.data.clips.write_video import write_video
from megavideo.data.ingest import ingest, read_clip_list
from megavideo.data.ingest.duplicates import Fingerprinted, find_duplicates
from megavideo.data.ingest.fingerprint import HASH_BITS, fingerprint
from megavideo.evaluation.shapes.corpus import render_corpus
from tests.data.clip_files import write_captions, write_clip
from tests.data.test_ingest_cuts import texture


def scaled(frames: np.ndarray, share: float) -> np.ndarray:
    size = int(frames.shape[2] * share) // 2 * 2, int(frames.shape[1] * share) // 2 * 2
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


def test_copies_are_found(tmp_path: Path) -> None:
    """Re-encoded, rescaled, and bit for bit; the largest is kept."""
    src = tmp_path / "src"
    src.mkdir()
    frames = texture(0, 24, 96, 128)
    write_clip(src / "b_original.mp4", frames, fps=24)
    (src / "a_same.mp4").write_bytes((src / "b_original.mp4").read_bytes())
    write_clip(src / "half.mkv", scaled(frames, 0.5), fps=24)
    write_clip(src / "mirrored.mp4", frames[:, :, ::-1], fps=24)
    write_clip(src / "red_and_blue_changed.mp4", frames[..., ::-1], fps=24)
    write_clip(src / "other.mp4", texture(1, 24, 96, 128), fps=24)
    Image.fromarray(frames[12]).save(src / "picture.png")
    Image.fromarray(scaled(frames[12:13], 0.75)[0]).save(src / "picture.jpg", quality=60)
    write_captions(src, {path.name: "x" for path in src.glob("*.*")})
    report = ingest(IngestRun(src=str(src), out=str(tmp_path / "out")))
    assert {clip.file: clip.reason for clip in report.dropped} == {
        "b_original.mp4": "repeats a_same.mp4",
        "half.mkv": "repeats a_same.mp4",
        "picture.jpg": "repeats picture.png",
    }
    off = ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), filters=FiltersConfig(duplicate_bits=None)))
    assert off.num_clips == 8


def test_the_demo_s_shapes_are_all_kept(tmp_path: Path) -> None:
    """Hundreds of like clips on dark backgrounds: none is a copy, letterboxed, static or cut in two."""
    truths = render_corpus(tmp_path / "src", 150, 20, 0)
    report = ingest(IngestRun(src=str(tmp_path / "src"), out=str(tmp_path / "out"), workers=1))
    rows = {row.file: row for row in read_clip_list(tmp_path / "out").rows}
    assert report.num_dropped == 0 and rows.keys() == {truth.file for truth in truths}
    for truth in truths:
        row = rows[truth.file]
        found = (row.frames, row.height, row.width, row.crop)
        assert found == (truth.scene.num_frames, truth.scene.height, truth.scene.width, None)


def test_real_clips_are_known_again(real_clips: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    names = ("carphone.mp4", "horse.mp4")
    for name in names:
        (src / name).write_bytes((real_clips / name).read_bytes())
        info = probe(src / name)
        write_video(src / f"copy_{name}", scaled(decode_frames(src / name, 0, info.frames), 0.6), info.fps)
    write_captions(src, {path.name: "x" for path in src.glob("*.mp4")})
    report = ingest(IngestRun(src=str(src), out=str(tmp_path / "out")))
    assert {clip.file: clip.reason for clip in report.dropped} == {f"copy_{n}": f"repeats {n}" for n in names}


def made(number: int, rng: random.Random, bits: int) -> Fingerprinted:
    return Fingerprinted(
        f"{number}.mp4", 0, rng.choice([100, 200]), 20, False, 1.0, f"{bits:064x}", "80" * 768
    )  # fmt: skip


@pytest.mark.parametrize("most_bits", [0, 7, 12, 31])
def test_bands_miss_nothing_and_order_plays_no_part(most_bits: int) -> None:
    """Beside a plain comparison of all pairs."""
    rng = random.Random(most_bits)
    clips: list[Fingerprinted] = []
    for number in range(120):
        bits = rng.getrandbits(HASH_BITS)
        if clips and rng.random() < 0.6:
            bits = int(rng.choice(clips).hash_bits, 16)
            for _ in range(rng.randrange(most_bits + 3)):
                bits ^= 1 << rng.randrange(HASH_BITS)
        clips.append(made(number, rng, bits))
    expected: set[str] = set()
    kept: list[Fingerprinted] = []
    for clip in sorted(clips, key=lambda clip: (-clip.pixels, -clip.frames, clip.file, clip.start)):
        near = [k for k in kept if (int(clip.hash_bits, 16) ^ int(k.hash_bits, 16)).bit_count() <= most_bits]
        if near:
            expected.add(clip.file)
        else:
            kept.append(clip)
    assert 20 < len(expected) < 100
    for seed in range(3):
        shuffled = random.Random(seed).sample(clips, len(clips))
        found = find_duplicates(shuffled, most_bits)
        assert {shuffled[index].file for index in found} == expected
        assert not {shuffled[other].file for other in found.values()} & expected


def test_like_hashes_are_confirmed() -> None:
    rng = random.Random(0)
    first = made(0, rng, 12345)
    assert find_duplicates([first, replace(first, file="1")], 12) in ({1: 0}, {0: 1})
    for other in (
        replace(first, file="1", seconds=1.3),
        replace(first, file="1", colours="90" * 768),
        replace(first, file="1", is_image=True),
        replace(first, file="1", colours="80" * 767 + "ff"),
    ):
        assert find_duplicates([first, other], 12) == {}
    assert find_duplicates([], 12) == {}


def test_the_hash_is_stable() -> None:
    """Stored hashes of an earlier version are compared with new ones."""
    frames = texture(9, 10, 72, 96)
    seconds = [index / 8 for index in range(10)]
    bits, colours = fingerprint(frames, seconds)
    assert (len(bits), len(colours)) == (HASH_BITS // 4, 2 * 768)
    stored = "d0c3e3ef9c21390bd0c3e1ed9d213d0bd8c2e1e59f213d8ad9c0e1e597313c8b"
    assert (int(bits, 16) ^ int(stored, 16)).bit_count() <= 2  # rounding may differ between versions of OpenCV
    found = np.frombuffer(bytes.fromhex(colours[:24]), np.uint8).astype(int)
    assert np.abs(found - [120, 154, 214, 155, 172, 183, 210, 226, 207, 232, 101, 85]).max() <= 1
