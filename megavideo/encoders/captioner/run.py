"""`megavideo caption`: a model describes clips, or rewrites their captions.

`out` receives `answers.jsonl` (every answer as it comes; one file a share of the work), then `captions.jsonl` (each
clip with its captions and their weights, as ingest reads it), `captions.png` (a look at some) and `report.json`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megavideo.config.schema.captions import CaptionerConfig, CaptionRun
from megavideo.config.texts import Share
from megavideo.data.clips.captions import caption_row
from megavideo.data.ingest.share import find_share, is_in_share
from megavideo.data.storage.owners import Claim, owning
from megavideo.encoders.captioner.answer_log import AnswerLog
from megavideo.encoders.captioner.ask import ask_all, asks_of
from megavideo.encoders.captioner.build import build_captioner
from megavideo.encoders.captioner.clips import CaptionFailure, find_clips
from megavideo.encoders.captioner.result import (
    CaptionedClip,
    PromptReport,
    captioned_clips,
    prompt_reports,
    write_sheet,
)
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

CAPTIONS_NAME = "captions.jsonl"
_SHEET_NAME = "captions.png"
_REPORT_NAME = "report.json"
_LOCK_NAME = "writing.lock"
_OF_EACH_TASK = ("src", "out", "shard")
_OF_EACH_MODEL = ("path", "endpoint")  # what answers depend on of these is the model's identity

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionReport:
    """The outcome: `num_clips` were found, `num_captioned` have all new captions, `num_written` have any caption.

    Of this process's share, `num_asked` captions were written by the model in this run and `num_kept` in earlier ones;
    `num_waiting` are still missing in the shares of others.
    """

    src: str
    out: str
    captions: str
    num_clips: int
    num_captioned: int
    num_written: int
    num_asked: int
    num_kept: int
    num_waiting: int
    seconds: float
    prompts: tuple[PromptReport, ...]
    failures: tuple[CaptionFailure, ...]


def caption(cfg: CaptionRun) -> CaptionReport:
    """Write captions for the clips of `cfg.src` to `cfg.out`; goes on where an earlier run was interrupted.

    A clip that fails is reported, keeps the captions that it had, and is tried again by the next run. Raises
    ConfigError on settings, a model or a place that cannot be used, DataError where there is no clip, or no clip got a
    caption, and OutputInUse where another process captions to it that is no task of the same work.
    """
    begin = time.monotonic()
    out = Path(cfg.out).expanduser()
    if out.exists() and not out.is_dir():
        raise ConfigError("out", cfg.out, "is a file", "give a folder")
    share = find_share(cfg.shard, os.environ)
    model = build_captioner(cfg.captioner)
    clips, failures = find_clips(cfg, share)
    asks = [ask for clip in clips for ask in asks_of(clip, cfg.captioner)]
    mine = [ask for ask in asks if is_in_share(ask.clip.key, share)]
    failures += [
        CaptionFailure(clip.file, "has no caption to expand")
        for clip in clips
        if is_in_share(clip.key, share) and not asks_of(clip, cfg.captioner)
    ]
    asked_with = _settings(cfg.captioner, model.identity)
    with owning(out, _claim(cfg, share, asked_with)), AnswerLog(out, share, asked_with, cfg.overwrite) as answers:
        todo = [ask for ask in mine if answers.get(ask.clip.key, ask.prompt) is None]
        if len(todo) < len(mine):
            _log.info("caption: %d of %d captions are there already", len(mine) - len(todo), len(mine))
        failures += ask_all(cfg.captioner, model, todo, answers)
        with _writing(out):
            answers.read_others()
            captioned = captioned_clips(cfg, clips, answers)
            missing = [ask for ask in asks if answers.get(ask.clip.key, ask.prompt) is None]
            report = CaptionReport(
                src=cfg.src,
                out=cfg.out,
                captions=str(out / CAPTIONS_NAME),
                num_clips=len(clips),
                num_captioned=len({ask.clip.key for ask in asks} - {ask.clip.key for ask in missing}),
                num_written=len(captioned),
                num_asked=len(todo) - len(set(todo) & set(missing)),
                num_kept=len(mine) - len(todo),
                num_waiting=len(set(missing) - set(mine)),
                seconds=round(time.monotonic() - begin, 1),
                prompts=prompt_reports(cfg, asks, answers),
                failures=tuple(failures),
            )
            _write_results(out, report, captioned)
        write_sheet(out / _SHEET_NAME, cfg.captioner.kind, captioned)
    return report


def _claim(cfg: CaptionRun, share: Share, asked_with: Mapping[str, Any]) -> Claim:
    """Tasks that ask for the same captions of the same clips share the folder."""
    elsewhere = "out= another folder"
    if share.count == 1:
        return Claim("caption", elsewhere)
    settings = {name: value for name, value in asdict(cfg).items() if name not in _OF_EACH_TASK}
    settings["captioner"] = {name: v for name, v in settings["captioner"].items() if name not in _OF_EACH_MODEL}
    plan = [os.path.realpath(Path(cfg.src).expanduser()), share.count, settings, dict(asked_with)]
    return Claim("caption", elsewhere, json.dumps(plan, sort_keys=True))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """One process at a time: the last of several that share the work sees the answers of all."""
    with (out / _LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_results(out: Path, report: CaptionReport, captioned: Sequence[CaptionedClip]) -> None:
    _write(out / _REPORT_NAME, json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    if report.num_waiting == 0 and all(prompt.captions == 0 for prompt in report.prompts):
        reasons = "; ".join(f"{failure.file}: {failure.reason}" for failure in report.failures[:3])
        raise DataError(
            f"{report.src}: no clip got a caption ({reasons}). Remedy: see {out / _REPORT_NAME} for each file"
        )
    rows = (caption_row(row.clip.file, row.captions, row.clip.clip_id) for row in captioned)
    _write(out / CAPTIONS_NAME, "".join(rows))


def _settings(cfg: CaptionerConfig, identity: Mapping[str, str]) -> dict[str, Any]:
    """What an answer depends on beside clip and prompt."""
    names = ("kind", "frames", "frames_as", "longest_side", "max_new_tokens")
    return {name: getattr(cfg, name) for name in names} | dict(identity)


def _write(path: Path, text: str) -> None:
    try:
        write_file(path, text.encode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}). Remedy: check out= and free space") from error
