"""Forty hostile files among twenty good ones: the twenty come through, and each of the forty is told with a reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from megavideo.cli.main import main
from megavideo.data.dataset.dataset import open_dataset
from tests.data.clip_files import write_clip
from tests.data.test_ingest_cuts import texture

SECRET = b"what only the user may read"
BOMB_SIDE = 30_000


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that is none of the clips', and would be one by its content."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "secret.txt").write_bytes(SECRET)
    write_clip(place / "private.mp4", texture(99, 5, 48, 48))
    return place


def write_good(folder: Path) -> list[str]:
    """Twenty clips and images, each with a caption beside it."""
    names = []
    for number in range(20):
        name = f"good {number:02d} é.{'png' if number % 4 == 0 else 'mp4'}"
        frames = texture(number, 9, 64, 64)
        if name.endswith("png"):
            Image.fromarray(frames[0]).save(folder / name)
        else:
            write_clip(folder / name, frames)
        (folder / name).with_suffix(".txt").write_text(f"clip {number}")
        names.append(name)
    return names


def write_hostile(folder: Path, outside: Path) -> Iterator[str]:
    """Forty files or captions that no dataset is made of; the names under which they are to be told."""
    clip = (outside / "private.mp4").read_bytes()
    png = io.BytesIO()
    Image.fromarray(texture(7, 1, 64, 64)[0]).save(png, "PNG")
    contents = {
        "empty.mp4": b"", "garbage.mp4": os.urandom(4096), "cut.mp4": clip[: len(clip) // 2], "head.mp4": clip[:60],
        "text.mkv": b"not a film\n" * 50, "concat.mp4": b"ffconcat version 1.0\nfile 'good 01 .mp4'\n",
        "list.ts": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "page.webm": b"<html></html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
        "script.png": b"%!PS-Adobe-3.0\n(/etc/passwd) run\n", "cut.png": png.getvalue()[:80], "empty.webp": b"",
        "garbage.jpg": b"\xff\xd8\xff\xe0" + os.urandom(300), "frames.gif": b"GIF89a\x10\x00\x10\x00\x00\x00\x00;",
        "wave.avi": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0", "objects.mp4": pickle.dumps(print), "bomb.png": bomb(),
        "one.tiff": b"II*\0\xff\xff\xff\xff", "raw.y4m": b"YUV4MPEG2 W99999 H99999 F25:1\nFRAME\n",
        "n" * 250 + ".mp4": b"x",
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield name
    with zipfile.ZipFile(folder / "archive.mov", "w") as archive:
        archive.writestr("a.mp4", clip)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        for packet in [*stream.encode(silence), *stream.encode()]:
            container.mux(packet)
    os.mkfifo(folder / "fifo.mp4")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "random.mp4").symlink_to("/dev/urandom")
    (folder / "private.mp4").symlink_to(outside / "private.mp4")
    (folder / "dangling.mp4").symlink_to(outside / "gone.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket.mp4")  # the path itself may be too long
        os.close(here)
    (folder / "picture.jxl").write_bytes(b"\xff\x0a" + bytes(64))
    with open(os.fsencode(folder) + b"/caf\xe9.mp4", "wb") as file:
        file.write(clip)
    yield from ("archive.mov", "sound.mp4", "fifo.mp4", "zero.png", "random.mp4", "private.mp4", "dangling.mp4")
    yield from ("socket.mp4", "picture.jxl", r"caf\xe9.mp4")
    yield from _bad_captions(folder, outside)


def _bad_captions(folder: Path, outside: Path) -> Iterator[str]:
    """Clips that could be read, were it not for their captions."""
    beside: dict[str, bytes] = {
        "deep.json": b"[" * 200_000, "number.json": b'{"caption": 3}', "lone.json": b'{"caption": "\\ud800"}',
        "weight.json": b'{"captions": [{"text": "a", "weight": ' + b"9" * 400 + b"}]}", "bytes.txt": b"\xff\xfe\xfd",
        "long.txt": b"word " * 500_000, "blank.txt": b" \n",
    }  # fmt: skip
    for number, (name, content) in enumerate(beside.items()):
        (folder / name).write_bytes(content)
        clip = f"{Path(name).stem}.mp4"
        write_clip(folder / clip, texture(100 + number, 9, 64, 64))
        yield clip
    for number, name in enumerate(("linked", "piped", "without")):
        write_clip(folder / f"{name}.mp4", texture(200 + number, 9, 64, 64))
        yield f"{name}.mp4"
    (folder / "linked.txt").symlink_to(outside / "secret.txt")
    os.mkfifo(folder / "piped.txt")


def bomb() -> bytes:
    """A PNG of 900 million white pixels in less than a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), []
    line = bytes(1 + BOMB_SIDE // 8)
    rows = [packer.compress(line * 1000) for _ in range(BOMB_SIDE // 1000)]
    data = b"".join([*rows, packer.flush()])
    head = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_the_good_come_through_and_the_others_are_told(tmp_path: Path, outside: Path) -> None:
    clips, listed, latents = tmp_path / "clips", tmp_path / "listed", tmp_path / "latents"
    clips.mkdir()
    good, hostile = write_good(clips), list(write_hostile(clips, outside))
    assert len(good) == 20 and len(set(hostile)) == 40
    rows = [{"file": "picture.jxl", "caption": "a picture"}, {"file": "gone.mp4", "caption": "no file"}]
    damaged = [b"[" * 100_000, b'{"file": "\\ud800"}', b'{"file": 7}', b"\xff", b'{"file": "' + b"n" * 5000 + b'"}']
    table = [*(json.dumps(row).encode() for row in rows), *damaged]
    (clips / "captions.jsonl").write_bytes(b"\n".join(table) + b"\n")

    assert main(["ingest", f"src={clips}", f"out={listed}", "workers=1"]) == 0
    report = json.loads((listed / "report.json").read_text())
    assert (report["num_inputs"], report["inputs_kept"], report["inputs_dropped"]) == (60, 20, 40)
    told = {clip["file"]: clip["reason"] for clip in report["dropped"]}
    assert set(told) == set(hostile) and all(told.values()), set(hostile) ^ set(told)
    assert len([note for note in report["caption_notes"] if "no row of captions" in note["reason"]]) == len(damaged)

    words = ["area=4096", "max_frames=9", "text_encoder.dim=32", "autoencoder.channels=4", "autoencoder.fit_clips=4"]
    assert main(["encode", f"src={listed}", f"out={latents}", "workers=1", *words]) == 0
    dataset = open_dataset(str(latents))
    assert sorted(sample.source for sample in dataset.samples) == sorted(good)
    for folder in (listed, latents):
        for path in folder.rglob("*"):
            assert not path.is_file() or (SECRET not in path.read_bytes() and b"root:x:0" not in path.read_bytes())
    shutil.rmtree(clips)
