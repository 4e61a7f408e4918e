"""`ingest`: find the inputs, read this process's share of them, and list the clips once all are read."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest.examine import Recipe, recipe_of
from megavideo.data.ingest.find import Captions, find_inputs
from megavideo.data.ingest.judge import Judge
from megavideo.data.ingest.judged import Judged, dropped_line
from megavideo.data.ingest.page import PAGE_NAME, page_text
from megavideo.data.ingest.part import PARTS_FOLDER, PASSING_FAULTS, current_part, part_path
from megavideo.data.ingest.report import IngestReport
from megavideo.data.ingest.rows import CLIPS_NAME, ROOT_NAME, ClipRow, clip_line, root_line
from megavideo.data.ingest.share import find_share, is_in_share
from megavideo.data.ingest.tally import Spans, Tally
from megavideo.data.ingest.work import Job, choose_workers, run_jobs
from megavideo.data.storage.open import is_object_store
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import replacing, write_file

DROPPED_NAME = "dropped.jsonl"
_REPORT_NAME = "report.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Places:
    """The root of the inputs, the folder that is written, and the names of the inputs below the root, sorted."""

    root: Path
    out: Path
    files: list[str]


def ingest(cfg: IngestRun) -> IngestReport:
    """Read this process's share of the inputs of `cfg.src`, and write the list of clips to `cfg.out` if all are read.

    Inputs that were read before and have not changed are not read again. A single bad input is reported and dropped.
    Raises DataError where nothing can come of the whole: no such source, no media in it, no captions, a broken caption
    file, no usable clip, a name that is not UTF-8. Raises ConfigError for `out` or `src` in a store and for own scores
    that are not there.
    """
    places = _find(cfg)
    with closing(Captions(places.root, cfg.captions)) as captions:
        return _ingest(cfg, places, captions)


def _ingest(cfg: IngestRun, places: _Places, captions: Captions) -> IngestReport:
    recipe, share = recipe_of(cfg), find_share(cfg.shard, os.environ)
    if share.index == 0:
        captions.check(places.files)  # before anything is decoded; of many tasks, one is enough
    _make_folder(places.out)
    mine = [file for file in places.files if is_in_share(file, share)]
    todo = [file for file in mine if not _is_done(places, file, recipe)]
    _log.info(
        "ingest: %d inputs, %d in share %d/%d, %d of them read before",
        len(places.files), len(mine), share.index, share.count, len(mine) - len(todo),
    )  # fmt: skip
    jobs = [Job(places.root, file, places.out, recipe) for file in todo]
    run_jobs(jobs, choose_workers(cfg.workers, len(jobs)))
    waiting = sum(not part_path(places.out, file).exists() for file in places.files)
    if not waiting:
        captions.check(places.files)
        with _writing(places.out), Judged(places.out) as judged:
            waiting = _judge(places, recipe, Judge(captions, cfg.filters, judged))
            if not waiting:
                return _finish(cfg, places, captions, judged)
    _log.info("ingest: %d inputs are still to be read by others; the last one lists the clips", waiting)
    return _report(cfg, places, captions, None, waiting)


def _judge(places: _Places, recipe: Recipe, judge: Judge) -> int:
    """Judge all inputs; gives the number of those that changed since they were read, and have to be read again."""
    waiting = 0
    for file in places.files:
        part = current_part(places.out, places.root / file, file, recipe.key)
        if part is None:
            waiting += 1
        elif not waiting:
            judge.hear(part)
    return waiting


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
    return _Places(root, out, find_inputs(src, out))


def _make_folder(out: Path) -> None:
    try:
        (out / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}). Remedy: check out=") from error


def _is_done(places: _Places, file: str, recipe: Recipe) -> bool:
    """True for an input with a part that holds; one whose fault may have passed is read again."""
    part = current_part(places.out, places.root / file, file, recipe.key)
    return part is not None and part.fault not in PASSING_FAULTS


def _finish(cfg: IngestRun, places: _Places, captions: Captions, judged: Judged) -> IngestReport:
    """Write what became of all clips, the list of those that are kept last."""
    out, tally = places.out, Tally(judged.spans)
    with replacing(out / CLIPS_NAME) as clips:
        with (
            replacing(out / DROPPED_NAME) as dropped,
            clips.open("wb") as kept_file,
            dropped.open("wb") as dropped_file,
        ):
            for clip in judged.outcomes(cfg.filters.duplicate_bits):
                tally.add(clip)
                if isinstance(clip, ClipRow):
                    kept_file.write(clip_line(clip))
                else:
                    dropped_file.write(dropped_line(clip))
        report = _report(cfg, places, captions, tally, 0)
        text = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
        write_file(out / _REPORT_NAME, text.encode())
        write_file(out / PAGE_NAME, page_text(report, tally, out, cfg.filters).encode())
        if not tally.num_clips:
            (out / CLIPS_NAME).unlink(missing_ok=True)  # of an earlier run: what is encoded is what is reported
            reasons = "; ".join(f"{clip.file}: {clip.reason}" for clip in tally.dropped[:3])
            raise DataError(
                f"{cfg.src}: none of {len(places.files)} clips can be used ({reasons}). Remedy: see {out / PAGE_NAME} "
                "for each reason"
            )
        write_file(out / ROOT_NAME, root_line(places.root).encode())
    _log.info("ingest: %d clips kept, %d dropped, listed in %s", report.num_clips, report.num_dropped, out)
    return report


def _report(cfg: IngestRun, places: _Places, captions: Captions, tally: Tally | None, waiting: int) -> IngestReport:
    tally, is_done = tally or Tally(Spans()), tally is not None
    return IngestReport(
        src=str(cfg.src),
        out=str(cfg.out),
        num_inputs=len(places.files),
        inputs_kept=tally.inputs_kept,
        inputs_dropped=tally.inputs_dropped,
        inputs_waiting=waiting,
        num_clips=tally.num_clips,
        num_images=tally.num_images,
        num_frames=tally.num_frames,
        video_seconds=round(tally.video_seconds, 3),
        num_dropped=sum(tally.counts.values()),
        dropped_by_kind=tally.counts,
        dropped=tuple(tally.dropped),
        caption_notes=captions.notes(places.files, is_done),
        page=str(places.out / PAGE_NAME) if is_done else None,
    )


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror}). Remedy: check out= and free space"
        raise DataError(f"{error.filename or out}: {reason}") from error
