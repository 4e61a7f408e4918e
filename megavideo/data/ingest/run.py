"""`ingest`: find the inputs, read this process's share of them, and list the clips once all are read."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest.examine import Recipe, recipe_of
from megavideo.data.ingest.find import Captions, find_captions, find_media
from megavideo.data.ingest.merge import Merged, merge
from megavideo.data.ingest.page import PAGE_NAME, page_text
from megavideo.data.ingest.part import PARTS_FOLDER, PASSING_FAULTS, Part, current_part, part_path, without_pictures
from megavideo.data.ingest.report import IngestReport
from megavideo.data.ingest.rows import CLIPS_NAME, ROOT_NAME, clip_lines, root_line
from megavideo.data.ingest.share import find_share, is_in_share
from megavideo.data.ingest.work import Job, choose_workers, run_jobs
from megavideo.data.storage.open import is_object_store
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

DROPPED_NAME = "dropped.jsonl"
_REPORT_NAME = "report.json"
_DROPPED_SHOWN = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Places:
    """The root of the inputs, the folder that is written, and the inputs by their name below the root."""

    root: Path
    out: Path
    files: dict[str, Path]


def ingest(cfg: IngestRun) -> IngestReport:
    """Read this process's share of the inputs of `cfg.src`, and write the list of clips to `cfg.out` if all are read.

    Inputs that were read before and have not changed are not read again. A single bad input is reported and dropped.
    Raises DataError where nothing can come of the whole: no such source, no media in it, no captions, a broken caption
    file, no usable clip, a name that is not UTF-8. Raises ConfigError for `out` or `src` in a store and for own scores
    that are not there.
    """
    places = _find(cfg)
    captions = find_captions(list(places.files.values()), places.root, cfg.captions)
    recipe = recipe_of(cfg)
    _make_folder(places.out)
    share = find_share(cfg.shard, os.environ)
    mine = [file for file in places.files if is_in_share(file, share)]
    todo = [file for file in mine if not _is_done(places, file, recipe)]
    _log.info(
        "ingest: %d inputs, %d in share %d/%d, %d of them read before",
        len(places.files), len(mine), share.index, share.count, len(mine) - len(todo),
    )  # fmt: skip
    jobs = [Job(places.files[file], file, places.out, recipe) for file in todo]
    run_jobs(jobs, choose_workers(cfg.workers, len(jobs)))
    waiting = sum(not part_path(places.out, file).exists() for file in places.files)
    parts: list[Part] = []
    if not waiting:
        found = [current_part(places.out, path, file, recipe.key) for file, path in places.files.items()]
        parts = [without_pictures(part) for part in found if part is not None]
        waiting = len(found) - len(parts)
    if waiting:
        _log.info("ingest: %d inputs are still to be read by others; the last one lists the clips", waiting)
        return _report(cfg, places, captions, None, waiting)
    return _finish(cfg, places, captions, merge(parts, places.root, captions, cfg.filters))


def _find(cfg: IngestRun) -> _Places:
    for field, value in (("src", cfg.src), ("out", cfg.out)):
        if is_object_store(value):
            raise ConfigError(field, value, "ingest works on local folders", "give a folder of this machine")
    src, out = Path(os.path.abspath(Path(cfg.src).expanduser())), Path(os.path.abspath(Path(cfg.out).expanduser()))
    if not src.exists():
        raise DataError(f"{src}: no such file or folder. Remedy: correct src=")
    if out.exists() and not out.is_dir():
        raise ConfigError("out", cfg.out, "is a file", "give a folder")
    root = src if src.is_dir() else src.parent
    return _Places(root, out, {path.relative_to(root).as_posix(): path for path in find_media(src, out)})


def _make_folder(out: Path) -> None:
    try:
        (out / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}). Remedy: check out=") from error


def _is_done(places: _Places, file: str, recipe: Recipe) -> bool:
    """True for an input with a part that holds; one whose fault may have passed is read again."""
    part = current_part(places.out, places.files[file], file, recipe.key)
    return part is not None and part.fault not in PASSING_FAULTS


def _finish(cfg: IngestRun, places: _Places, captions: Captions, merged: Merged) -> IngestReport:
    report = _report(cfg, places, captions, merged, 0)
    lines = "".join(json.dumps(asdict(clip), ensure_ascii=False) + "\n" for clip in merged.dropped)
    _write(places.out, DROPPED_NAME, lines)
    _write(places.out, _REPORT_NAME, json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    _write(places.out, PAGE_NAME, page_text(report, merged, places.out, cfg.filters))
    if not merged.rows:
        (places.out / CLIPS_NAME).unlink(missing_ok=True)  # of an earlier run: what is encoded is what is reported
        reasons = "; ".join(f"{clip.file}: {clip.reason}" for clip in merged.dropped[:3])
        raise DataError(
            f"{cfg.src}: none of {len(places.files)} clips can be used ({reasons}). Remedy: see "
            f"{places.out / PAGE_NAME} for each reason"
        )
    _write(places.out, ROOT_NAME, root_line(places.root))
    _write(places.out, CLIPS_NAME, clip_lines(merged.rows))
    _log.info("ingest: %d clips kept, %d dropped, listed in %s", report.num_clips, report.num_dropped, places.out)
    return report


def _report(cfg: IngestRun, places: _Places, captions: Captions, merged: Merged | None, waiting: int) -> IngestReport:
    rows, dropped = (merged.rows, merged.dropped) if merged else ([], [])
    kept = {row.file for row in rows}
    clip_ids = {row.clip_id for row in rows} | {clip.clip_id for clip in dropped}
    return IngestReport(
        src=str(cfg.src),
        out=str(cfg.out),
        num_inputs=len(places.files),
        inputs_kept=len(kept),
        inputs_dropped=len({clip.file for clip in dropped} - kept),
        inputs_waiting=waiting,
        num_clips=len(rows),
        num_images=sum(row.is_image for row in rows),
        num_frames=sum(row.frames for row in rows),
        video_seconds=round(sum(row.frames / row.fps for row in rows if not row.is_image), 3),
        num_dropped=len(dropped),
        dropped_by_kind=merged.counts() if merged else {},
        dropped=tuple(dropped[:_DROPPED_SHOWN]),
        caption_notes=captions.notes_for(clip_ids) if merged else captions.notes,
        page=str(places.out / PAGE_NAME) if merged else None,
    )


def _write(out: Path, name: str, text: str) -> None:
    try:
        write_file(out / name, text.encode("utf-8"))
    except OSError as error:
        reason = f"cannot be written ({error.strerror}). Remedy: check out= and free space"
        raise DataError(f"{out / name}: {reason}") from error
