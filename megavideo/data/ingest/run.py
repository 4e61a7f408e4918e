"""`ingest`: find the inputs, read this process's share of them, and list the clips once all are read."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from megavideo.config.schema.prepare import IngestRun
from megavideo.config.texts import Share
from megavideo.data.ingest.examine import Recipe, recipe_of
from megavideo.data.ingest.filters.choose import bounds, score_bounds
from megavideo.data.ingest.find import Captions
from megavideo.data.ingest.judge import Judge, Rules
from megavideo.data.ingest.judged import Judged, dropped_line
from megavideo.data.ingest.page import PAGE_NAME, page_text
from megavideo.data.ingest.part import LARGE, PARTS_FOLDER, PASSING_FAULTS, Part, part_path
from megavideo.data.ingest.report import IngestReport
from megavideo.data.ingest.rows import CLIPS_NAME, ROOT_NAME, ClipRow, clip_line, root_line
from megavideo.data.ingest.scoring.measure import Measure
from megavideo.data.ingest.scoring.stage import Scoring, check_measures
from megavideo.data.ingest.share import find_share, is_in_share
from megavideo.data.ingest.source import Source, opened_source
from megavideo.data.ingest.tally import Spans, Tally
from megavideo.data.ingest.work import choose_workers, run_jobs
from megavideo.data.storage.owners import Claim, owning
from megavideo.errors import DataError
from megavideo.observe.whole_file import replacing, write_file

DROPPED_NAME = "dropped.jsonl"
_REPORT_NAME = "report.json"
_OF_EACH_TASK = ("out", "store", "workers", "shard")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Places:
    """Where the inputs come from, and the folder that is written."""

    source: Source
    out: Path


def ingest(cfg: IngestRun, measures: Sequence[Measure] = ()) -> IngestReport:
    """Read this process's share of the inputs of `cfg.src`, and write the list of clips to `cfg.out` if all are read.

    `measures` are those that `cfg.scores` asks for, as `encoders.scores` makes them: models are not known here. Inputs
    that were read before and have not changed are not read again, nor clips measured again. A single bad input is
    reported and dropped. Raises DataError where nothing can come of the whole: no such source, no media in it, no
    captions, a broken caption file, no usable clip; StoreUnreachable where a store stays away. Raises ConfigError for
    `out` in a store and for own scores that are not there, and OutputInUse where an ingest of another source or with
    other settings is at work in `out`.
    """
    check_measures(cfg.scores, measures)
    with (
        opened_source(cfg) as (source, out),
        owning(out, _claim(cfg, source)),
        source.captions(cfg.captions) as captions,
    ):
        rules = Rules(cfg.filters, bounds(cfg.filters), score_bounds(cfg.scores))
        return _ingest(cfg, _Places(source, out), captions, Judge(captions, rules, Scoring(cfg.scores, measures, out)))


def _claim(cfg: IngestRun, source: Source) -> Claim:
    """Those that read the same source with the same settings share the folder, whatever share of it is theirs."""
    settings = {name: value for name, value in asdict(cfg).items() if name not in _OF_EACH_TASK}
    captions = None if cfg.captions is None else os.path.realpath(Path(cfg.captions).expanduser())
    plan = {**settings, "src": source.identity, "captions": captions}
    return Claim("ingest", "out= another folder", json.dumps(plan, sort_keys=True))


def _ingest(cfg: IngestRun, places: _Places, captions: Captions, judge: Judge) -> IngestReport:
    source, out = places.source, places.out
    recipe, share = recipe_of(cfg), find_share(cfg.shard, os.environ)
    _make_folder(out)
    with _writing(out):
        source.prepare(out, lambda file: is_in_share(file, share))
    if share.index == 0:
        captions.check(source.files)  # before anything is decoded; of many tasks, one is enough
    _read(cfg, places, recipe, share)
    with _writing(out):
        _score(places, recipe, share, judge)
    waiting = sum(not part_path(out, file).exists() for file in source.files)
    if not waiting:
        with _writing(out):
            source.prepare(out, lambda file: True)
        captions.check(source.files)
        with _writing(out), Judged(out) as judged:
            waiting = _judge(places, recipe, captions, judge, judged)
            if not waiting:
                return _finish(cfg, places, captions, judged)
    _log.info("ingest: %d inputs are still to be read by others; the last one lists the clips", waiting)
    return _report(cfg, places, captions, None, waiting)


def _read(cfg: IngestRun, places: _Places, recipe: Recipe, share: Share) -> None:
    """Read what is not read yet of a share."""
    source, num_mine, num_read = places.source, 0, 0

    def todo() -> Iterator[str]:
        nonlocal num_mine
        for file in source.files:
            if is_in_share(file, share):
                num_mine += 1
                if not _is_done(places, file, recipe):
                    yield file

    for jobs in source.batches(todo(), places.out, recipe):
        _log.info(
            "ingest: %d inputs, %d in share %d/%d so far, %d of them read before",
            len(source.files), num_mine, share.index, share.count, num_mine - num_read - len(jobs),
        )  # fmt: skip
        run_jobs(source.place, jobs, choose_workers(cfg.workers, len(jobs)))
        num_read += len(jobs)
    if num_read:
        source.look_again()


def _score(places: _Places, recipe: Recipe, share: Share, judge: Judge) -> None:
    """Have models measure the clips of a share that pass all else."""
    source = places.source

    def clips_of(file: str) -> list[ClipRow]:
        part = _part(places, file, recipe)
        return [] if part is None else judge.candidates(part)

    judge.scoring.run(source.place, (file for file in source.files if is_in_share(file, share)), clips_of)


def _judge(places: _Places, recipe: Recipe, captions: Captions, judge: Judge, judged: Judged) -> int:
    """Judge all inputs; gives the number of those that are to be read again, as they changed, or to be scored yet."""
    waiting = 0
    for file in places.source.files:
        part = _part(places, file, recipe)
        if part is None:
            waiting += 1
        elif not waiting:
            waiting += not judge.hear(part, judged)
    for clip in places.source.refused(captions):
        judged.drops(clip)
    return waiting


def _make_folder(out: Path) -> None:
    try:
        (out / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}). Remedy: check out=") from error


def _is_done(places: _Places, file: str, recipe: Recipe) -> bool:
    """True for an input with a part that holds; one whose fault may have passed is read again."""
    part = _part(places, file, recipe)
    return part is not None and part.fault not in PASSING_FAULTS


def _part(places: _Places, file: str, recipe: Recipe) -> Part | None:
    """What was found in an input, if that holds: what had too many pixels is read once more are allowed."""
    part = places.source.part(places.out, file, recipe)
    is_due = part is not None and part.fault == LARGE and part.pixels <= recipe.max_pixels
    return None if is_due else part


def _finish(cfg: IngestRun, places: _Places, captions: Captions, judged: Judged) -> IngestReport:
    """Write what became of all clips, the list of those that are kept last."""
    out, tally = places.out, Tally(judged.spans)
    with replacing(out / CLIPS_NAME) as clips:
        with (
            replacing(out / DROPPED_NAME) as dropped,
            clips.open("wb") as kept_file,
            dropped.open("wb") as dropped_file,
        ):
            for clip in judged.outcomes(cfg.filters.duplicate_bits, cfg.scores.embedding.duplicate_cosine):
                tally.add(clip)
                if isinstance(clip, ClipRow):
                    kept_file.write(clip_line(clip))
                else:
                    dropped_file.write(dropped_line(clip))
        report = _report(cfg, places, captions, tally, 0)
        text = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
        write_file(out / _REPORT_NAME, text.encode())
        write_file(out / PAGE_NAME, page_text(report, tally, out, cfg).encode())
        if not tally.num_clips:
            (out / CLIPS_NAME).unlink(missing_ok=True)  # of an earlier run: what is encoded is what is reported
            reasons = "; ".join(f"{clip.file}: {clip.reason}" for clip in tally.dropped[:3])
            raise DataError(
                f"{cfg.src}: none of {report.num_inputs} clips can be used ({reasons}). Remedy: see {out / PAGE_NAME} "
                "for each reason"
            )
        write_file(out / ROOT_NAME, root_line(places.source.root).encode())
    _log.info("ingest: %d clips kept, %d dropped, listed in %s", report.num_clips, report.num_dropped, out)
    return report


def _report(cfg: IngestRun, places: _Places, captions: Captions, tally: Tally | None, waiting: int) -> IngestReport:
    tally, is_done, files = tally or Tally(Spans()), tally is not None, places.source.files
    return IngestReport(
        src=str(cfg.src),
        out=str(cfg.out),
        num_inputs=len(files) + (sum(1 for _ in places.source.refused(captions)) if is_done else 0),
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
        treated=tally.treated,
        caption_notes=places.source.notes(captions.notes(files, is_done)),
        page=str(places.out / PAGE_NAME) if is_done else None,
    )


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror}). Remedy: check out= and free space"
        raise DataError(f"{error.filename or out}: {reason}") from error
