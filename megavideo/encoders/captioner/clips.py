"""The clips that captions are written for, of an ingested folder or of a folder of raw clips, and frames of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megavideo.config.schema.captions import CaptionRun
from megavideo.config.texts import Share
from megavideo.data.clips.captions import CaptionTable, WeightedCaption, read_caption_table, read_sidecar_captions
from megavideo.data.clips.clip_file import clip_file
from megavideo.data.clips.media import iter_frames, probe
from megavideo.data.clips.resize import resize_frames
from megavideo.data.clips.seek import Anchor
from megavideo.data.clips.view import frame_numbers, view_size
from megavideo.data.ingest import CLIPS_NAME, ClipRow, find_media, read_clip_list
from megavideo.encoders.captioner.answer import ClipView
from megavideo.errors import ConfigError, DataError

_CAPTIONS_NAME = "captions.jsonl"
_READERS = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionFailure:
    """A clip that got no new caption, or not all of them, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class SourceClip:
    """A clip with the captions that it has; its `file` must lie under `root`.

    `clip_id` is None for a raw clip; `start` is its first frame in the file.
    `box` (left, top, right, bottom) is its picture in upright pixels, each `pixel_aspect` as wide as it is high.
    """

    file: str
    clip_id: str | None
    root: Path
    start: int
    anchor: Anchor | None
    frames: int
    fps: float
    box: tuple[int, int, int, int]
    pixel_aspect: float
    captions: tuple[WeightedCaption, ...]

    @property
    def key(self) -> str:
        """What its answers are kept under."""
        return self.clip_id or self.file

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root / self.file


def find_clips(cfg: CaptionRun, share: Share) -> tuple[list[SourceClip], list[CaptionFailure]]:
    """The clips of `cfg.src` and those that cannot be read.

    Raises DataError where there is no clip at all, and ConfigError where raw clips, each of which must be decoded to be
    known, are to be shared between processes.
    """
    src = Path(os.path.abspath(Path(cfg.src).expanduser()))
    if not src.exists():
        raise DataError(f"{src}: no such file or folder. Remedy: correct src=")
    if (src / CLIPS_NAME).is_file():
        listed = read_clip_list(src)
        table = _table(cfg, None, listed.root)
        return [_ingested(row, listed.root, table) for row in listed.rows], []
    if share.count > 1:
        rule = "is a folder of raw clips, and only what ingest lists can be shared between processes"
        raise ConfigError("src", cfg.src, rule, "run ingest first, or caption in one process")
    return _raw_clips(src, cfg)


def view_of(clip: SourceClip, count: int, longest_side: int) -> ClipView:
    """`count` frames, the middles of as many equal parts of the clip, no side longer than `longest_side` pixels.

    A shorter clip shows all that it has. Raises DataError where the file is gone or damaged.
    """
    numbers = frame_numbers(clip.frames, count)
    frames = iter_frames(clip_file(clip.root, clip.file), clip.start, numbers[-1] + 1, clip.anchor)
    wanted = set(numbers)
    shown = (frame for number, frame in enumerate(frames) if number in wanted)
    return ClipView(
        resize_frames(shown, view_size(clip.box, clip.pixel_aspect, longest_side)), numbers, clip.frames, clip.fps
    )


def views_ahead(
    batches: Sequence[Sequence[SourceClip]], count: int, longest_side: int
) -> Iterator[list[ClipView | DataError]]:
    """The views of each batch, or the fault met; the next batch is read while one is worked on."""

    def read(clip: SourceClip) -> ClipView | DataError:
        try:
            return view_of(clip, count, longest_side)
        except DataError as error:
            return DataError(str(error).removeprefix(f"{clip.path}: "))

    with ThreadPoolExecutor(_READERS) as pool:
        following = [pool.submit(read, clip) for clip in batches[0]] if batches else []
        for place in range(len(batches)):
            reading = following
            following = [pool.submit(read, clip) for clip in batches[place + 1]] if place + 1 < len(batches) else []
            yield [future.result() for future in reading]


def _table(cfg: CaptionRun, default: Path | None, root: Path) -> CaptionTable:
    path = Path(cfg.captions).expanduser() if cfg.captions is not None else default
    table = CaptionTable({}, {}, ()) if path is None else read_caption_table(path, root)
    for note in table.notes:
        _log.warning("caption: %s, line %d: %s", note.file, note.line, note.reason)
    return table


def _ingested(row: ClipRow, root: Path, table: CaptionTable) -> SourceClip:
    captions = table.of(row.clip_id, root / row.file) or row.captions or (WeightedCaption(row.caption),)
    return SourceClip(
        file=row.file,
        clip_id=row.clip_id,
        root=root,
        start=row.start,
        anchor=row.anchor,
        frames=row.frames,
        fps=row.fps,
        box=row.crop or (0, 0, row.width, row.height),
        pixel_aspect=row.pixel_aspect,
        captions=_said(captions),
    )


def _raw_clips(src: Path, cfg: CaptionRun) -> tuple[list[SourceClip], list[CaptionFailure]]:
    root = src if src.is_dir() else src.parent
    files = find_media(src, Path(os.path.abspath(Path(cfg.out).expanduser())))
    beside = root / _CAPTIONS_NAME
    table = _table(cfg, beside if beside.is_file() else None, root)

    def read(path: Path) -> SourceClip | str:
        try:
            info = probe(clip_file(root, path.relative_to(root).as_posix()))
            captions = table.of(None, path) or read_sidecar_captions(path, root) or ()
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")
        return SourceClip(
            file=path.relative_to(root).as_posix(),
            clip_id=None,
            root=root,
            start=0,
            anchor=None,
            frames=info.frames,
            fps=info.fps,
            box=(0, 0, info.width, info.height),
            pixel_aspect=info.pixel_aspect,
            captions=_said(captions),
        )

    clips: list[SourceClip] = []
    failures: list[CaptionFailure] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for path, outcome in zip(files, pool.map(read, files), strict=True):
            if isinstance(outcome, str):
                failures.append(CaptionFailure(path.relative_to(root).as_posix(), outcome))
                _log.warning("caption: skipped %s: %s", path.name, outcome)
            else:
                clips.append(outcome)
    return clips, failures


def _said(captions: Sequence[WeightedCaption]) -> tuple[WeightedCaption, ...]:
    return tuple(caption for caption in captions if caption.text)
