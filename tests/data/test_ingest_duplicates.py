"""Near-duplicates: what is one clip in two guises and what is not, and that the order of reading plays no part."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.media import decode_frames, probe
from megavideo.data.clips.write_video import write_video
from megavideo.data.ingest import ingest, read_clip_list
from megavideo.data.ingest.duplicates import find_duplicates
from megavideo.data.ingest.fingerprint import HASH_BITS, fingerprint
from megavideo.data.ingest.fingerprints import Fingerprints
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


@dataclass(frozen=True)
class Made:
    """A clip as it is compared; `seconds` is None for an image."""

    bits: int
    pixels: int = 100
    seconds: float | None = 1.0
    colours: str = "80" * 768


def search(folder: Path, clips: Sequence[Made], most_bits: int) -> dict[int, int]:
    """The clips that are dropped, each with the one that it repeats."""
    fingerprints = Fingerprints(folder)
    for clip in clips:
        fingerprints.add(f"{clip.bits:064x}", clip.colours, clip.pixels, 20, clip.seconds)
    repeated = find_duplicates(fingerprints, most_bits)
    fingerprints.close()
    return {index: other for index, other in enumerate(repeated.tolist()) if other >= 0}


def flipped(bits: int, number: int, rng: random.Random) -> int:
    return bits ^ sum(1 << place for place in rng.sample(range(HASH_BITS), number))


def kept_by_comparing_all(clips: Sequence[Made], most_bits: int) -> list[int]:
    """Every pair is compared."""
    kept: list[int] = []
    for index in sorted(range(len(clips)), key=lambda index: (-clips[index].pixels, index)):
        alike = [clips[other] for other in kept if clips[other].seconds == clips[index].seconds]
        if not any((clips[index].bits ^ other.bits).bit_count() <= most_bits for other in alike):
            kept.append(index)
    return sorted(kept)


@pytest.mark.parametrize("most_bits", [0, 1, 7, 12, 14, 15, 16, 31])
def test_nothing_is_missed(most_bits: int, tmp_path: Path) -> None:
    """Clips and images at all distances, some of them in crowds, beside a plain comparison of all pairs."""
    rng = random.Random(most_bits)
    clips: list[Made] = []
    crowd = rng.getrandbits(HASH_BITS)
    for number in range(500):
        bits = rng.getrandbits(HASH_BITS)
        if number % 4 == 0:
            bits = flipped(crowd, rng.randrange(most_bits + 8), rng)
        elif clips and rng.random() < 0.6:
            bits = flipped(rng.choice(clips).bits, rng.randrange(most_bits + 3), rng)
        clips.append(Made(bits, rng.choice([100, 200]), rng.choice([1.0, None])))
    found = search(tmp_path, clips, most_bits)
    kept = kept_by_comparing_all(clips, most_bits)
    assert 40 < len(found) < 450
    assert [index for index in range(len(clips)) if index not in found] == kept
    assert all((clips[index].bits ^ clips[other].bits).bit_count() <= most_bits for index, other in found.items())
    assert set(found.values()) <= set(kept)


def test_one_clip_in_hundreds_of_guises_is_kept_once(tmp_path: Path) -> None:
    rng = random.Random(3)
    bits = rng.getrandbits(HASH_BITS)
    clips = [Made(flipped(bits, rng.randrange(7), rng), 100 + (number == 250)) for number in range(500)]
    found = search(tmp_path, clips, 12)
    assert found == dict.fromkeys((number for number in range(500) if number != 250), 250)


def test_like_hashes_are_confirmed(tmp_path: Path) -> None:
    first = Made(12345)
    assert search(tmp_path, [first, first], 12) == {1: 0}
    assert search(tmp_path, [first, replace(first, pixels=200)], 12) == {0: 1}
    for other in (
        replace(first, seconds=1.3),
        replace(first, colours="90" * 768),
        replace(first, seconds=None),
        replace(first, colours="80" * 767 + "ff"),
    ):
        assert search(tmp_path, [first, other], 12) == {}
    assert search(tmp_path, [], 12) == {}


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
