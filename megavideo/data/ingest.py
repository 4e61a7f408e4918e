"""`megavideo ingest`: find clips and captions, decode every clip wholly once, and write what can be trained on.

`out` receives `clips.jsonl` (one `ClipRow` a line), `ingest.json` (where the clips lie) and `report.json` (what was
read, what was skipped and why). `clips.jsonl` is written last: where it is, the folder is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.captions import CaptionNote, CaptionTable, read_caption_table, read_sidecar
from megavideo.data.media import MediaInfo, is_media, probe
from megavideo.data.storage import is_object_store, write_file
from megavideo.errors import ConfigError, DataError

CLIPS_NAME = "clips.jsonl"
_ROOT_NAME = "ingest.json"
_REPORT_NAME = "report.json"
_CAPTIONS_NAME = "captions.jsonl"
_MOST_WORKERS = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipRow:
    """One usable clip. `file` is relative to the clips' root; sizes are upright pixels; `fps` is the real average."""

    clip_id: str
    file: str
    frames: int
    fps: float
    width: int
    height: int
    pixel_aspect: float
    is_image: bool
    caption: str


@dataclass(frozen=True)
class SkippedClip:
    """A file that cannot be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class IngestReport:
    """The outcome of an ingest: how many clips were read, what was skipped, and oddities of the caption file."""

    src: str
    out: str
    num_read: int
    num_images: int
    num_frames: int
    video_seconds: float
    skipped: tuple[SkippedClip, ...]
    caption_notes: tuple[CaptionNote, ...]


@dataclass(frozen=True)
class ClipList:
    """An ingested folder: the root of the clips and their rows."""

    root: Path
    rows: tuple[ClipRow, ...]

    def path(self, row: ClipRow) -> Path:
        """The file of a row."""
        return self.root / row.file


def ingest(cfg: IngestRun) -> IngestReport:
    """Read all clips of `cfg.src` and write `cfg.out`.

    A single bad clip is reported and skipped. Raises DataError where nothing can come of the whole: no such source, no
    media in it, no captions, a broken caption file, no usable clip. Raises ConfigError for `out` or `src` in a store.
    """
    for field, value in (("src", cfg.src), ("out", cfg.out)):
        if is_object_store(value):
            raise ConfigError(field, value, "ingest works on local folders", "give a folder of this machine")
    src, out = Path(os.path.abspath(Path(cfg.src).expanduser())), Path(os.path.abspath(Path(cfg.out).expanduser()))
    if not src.exists():
        raise DataError(f"{src}: no such file or folder. Remedy: correct src=")
    if out.exists() and not out.is_dir():
        raise ConfigError("out", cfg.out, "is a file", "give a folder")
    root = src if src.is_dir() else src.parent
    files = find_media(src, out)
    table = _caption_table(cfg, root)
    report, rows = _read_clips(files, root, table, cfg)
    _write(out, _REPORT_NAME, json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    if not rows:
        reasons = "; ".join(f"{clip.file}: {clip.reason}" for clip in report.skipped[:3])
        raise DataError(
            f"{src}: none of {len(files)} clips can be used ({reasons}). Remedy: see {out / _REPORT_NAME} for each file"
        )
    _write(out, _ROOT_NAME, json.dumps({"format": 1, "root": str(root)}) + "\n")
    _write(out, CLIPS_NAME, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
    _log.info("ingest: %d clips read, %d skipped, written to %s", report.num_read, len(report.skipped), out)
    return report


def find_media(src: Path, out: Path) -> list[Path]:
    """Files of video and images at or under `src`, sorted, without hidden ones and without what lies in `out`.

    Raises DataError where there is none.
    """
    if src.is_file():
        if not is_media(src):
            raise DataError(f"{src}: not a video or image by its suffix. Remedy: give a clip, or a folder of clips")
        return [src]
    found: list[Path] = []
    for folder, subfolders, names in os.walk(src):
        kept = (name for name in subfolders if not name.startswith(".") and (Path(folder) / name) != out)
        subfolders[:] = sorted(kept)
        found += [Path(folder) / name for name in names if not name.startswith(".") and is_media(Path(name))]
    if not found:
        raise DataError(f"{src}: holds no video or image file. Remedy: point src= at a folder of clips")
    return sorted(found)


def read_clip_list(folder: Path) -> ClipList:
    """Read what `ingest` wrote to `folder`; DataError where it is missing or damaged."""
    remedy = f"Remedy: run ingest again with out={folder}"
    try:
        root = Path(json.loads((folder / _ROOT_NAME).read_bytes())["root"])
        lines = (folder / CLIPS_NAME).read_bytes().splitlines()
        rows = tuple(ClipRow(**json.loads(line)) for line in lines if line.strip())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: its {CLIPS_NAME} or {_ROOT_NAME} cannot be read ({error}). {remedy}") from error
    if not rows:
        raise DataError(f"{folder / CLIPS_NAME}: holds no clip. {remedy}")
    seen: set[str] = set()
    for row in rows:
        if row.clip_id in seen:
            raise DataError(f"{folder / CLIPS_NAME}: clip_id {row.clip_id} stands twice. {remedy}")
        seen.add(row.clip_id)
    return ClipList(root, rows)


def _caption_table(cfg: IngestRun, root: Path) -> CaptionTable:
    if cfg.captions is not None:
        path = Path(cfg.captions).expanduser()
        if not path.is_file():
            raise DataError(f"{path}: no such captions file. Remedy: correct captions=, or leave it out")
        return read_caption_table(path, root)
    if (root / _CAPTIONS_NAME).is_file():
        return read_caption_table(root / _CAPTIONS_NAME, root)
    return CaptionTable({}, {}, ())


def _read_clips(
    files: list[Path], root: Path, table: CaptionTable, cfg: IngestRun
) -> tuple[IngestReport, list[ClipRow]]:
    captions: dict[Path, str] = {}
    caption_faults: dict[Path, str] = {}
    for path in files:
        try:
            caption = table.captions[path] if path in table.captions else read_sidecar(path)
            if caption:
                captions[path] = caption
            else:
                caption_faults[path] = "no caption" if caption is None else "its caption is empty"
        except DataError as error:
            caption_faults[path] = str(error)
    if not captions:
        raise DataError(
            f"{root}: none of {len(files)} clips has a caption. Remedy: put {_CAPTIONS_NAME} there with lines "
            '{"file": "NAME", "caption": "TEXT"}, or NAME.txt beside each clip, or give captions=FILE'
        )
    rows: list[ClipRow] = []
    skipped: list[SkippedClip] = []
    # Decoding releases the interpreter lock, so that threads suffice.
    with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as pool:
        for path, outcome in zip(files, pool.map(_probe_or_reason, files), strict=True):
            name = path.relative_to(root).as_posix()
            reason = outcome if isinstance(outcome, str) else caption_faults.get(path)
            if reason is not None or isinstance(outcome, str):
                skipped.append(SkippedClip(name, reason or ""))
                _log.warning("ingest: skipped %s: %s", name, reason)
                continue
            rows.append(_row(path, name, outcome, captions[path]))
            _log.info("ingest: %s: %d frames, %dx%d", name, outcome.frames, outcome.width, outcome.height)
    report = IngestReport(
        src=str(cfg.src),
        out=str(cfg.out),
        num_read=len(rows),
        num_images=sum(row.is_image for row in rows),
        num_frames=sum(row.frames for row in rows),
        video_seconds=round(sum(row.frames / row.fps for row in rows if not row.is_image), 3),
        skipped=tuple(skipped),
        caption_notes=table.notes + table.unknown(set(files)),
    )
    return report, rows


def _probe_or_reason(path: Path) -> MediaInfo | str:
    try:
        return probe(path)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")


def _row(path: Path, name: str, info: MediaInfo, caption: str) -> ClipRow:
    identity = hashlib.sha256(f"{name}\0{path.stat().st_size}".encode()).hexdigest()[:16]
    return ClipRow(
        clip_id=identity,
        file=name,
        frames=info.frames,
        fps=info.fps,
        width=info.width,
        height=info.height,
        pixel_aspect=info.pixel_aspect,
        is_image=info.is_image,
        caption=caption,
    )


def _write(out: Path, name: str, text: str) -> None:
    try:
        write_file(out / name, text.encode("utf-8"))
    except OSError as error:
        reason = f"cannot be written ({error.strerror}). Remedy: check out= and free space"
        raise DataError(f"{out / name}: {reason}") from error
