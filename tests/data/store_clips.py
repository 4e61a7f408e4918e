"""The same captioned clips in a folder and in a bucket."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from PIL import Image

from tests.data.clip_files import moving_square, write_captions, write_clip


def make_clips(folder: Path) -> Path:
    """Six inputs in two folders, captioned by a table, a text and an object; and a hidden one."""
    (folder / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "b.mp4", "deep/c.mp4", "deep/er/d.mp4")):
        write_clip(folder / name, moving_square(12 + number, 64, 64 + 16 * number, (220, 40 + 30 * number, 30)))
    (folder / "broken.mp4").write_bytes(b"no video")
    Image.fromarray(moving_square(1, 64, 80)[0]).save(folder / "deep" / "e.png")
    (folder / ".hidden.mp4").write_bytes((folder / "a.mp4").read_bytes())
    write_captions(folder, {name: f"clip {name}" for name in ("a.mp4", "deep/c.mp4", "deep/e.png", "broken.mp4")})
    (folder / "b.txt").write_text("a square of the text beside it")
    (folder / "deep" / "er" / "d.json").write_text('{"captions": ["one", {"text": "two", "weight": 2}]}')
    return folder


@functools.cache
def _client(url: str) -> Any:
    import boto3

    return boto3.session.Session().client("s3", endpoint_url=url)


def put(uri: str, name: str, data: bytes) -> None:
    """Put an object under a bucket or prefix."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    _client(os.environ["S3_ENDPOINT_URL"]).put_object(
        Bucket=bucket, Key=f"{prefix}/{name}" if prefix else name, Body=data
    )


def upload(folder: Path, uri: str) -> str:
    """Put all files of a folder under `uri`, as a tool that also makes objects for directories."""
    put(uri, "deep/", b"")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(uri, path.relative_to(folder).as_posix(), path.read_bytes())
    return uri
