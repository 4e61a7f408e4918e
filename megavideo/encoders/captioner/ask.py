"""Asking a model for the captions that are still missing, batch by batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from megavideo.config.schema.captions import CaptionerConfig
from megavideo.data.clips.captions import heaviest
from megavideo.encoders.captioner.answer import Answer, AnsweringModel, ClipView, Request, instructed
from megavideo.encoders.captioner.answer_log import AnswerLog
from megavideo.encoders.captioner.clips import CaptionFailure, SourceClip, frame_numbers, views_ahead
from megavideo.errors import DataError
from megavideo.observe.progress import eta_seconds, format_seconds

_LOGGED_LINES = 50
_PACE_BATCHES = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """One caption to be had: the clip, the place of its prompt in the settings, and the prompt in full."""

    clip: SourceClip
    place: int
    prompt: str


def asks_of(clip: SourceClip, cfg: CaptionerConfig) -> list[Ask]:
    """What is asked about a clip: each prompt once; nothing where there is no caption to expand."""
    if cfg.kind == "vlm":
        return [Ask(clip, place, prompt) for place, prompt in enumerate(cfg.prompts)]
    if not clip.captions:
        return []
    text = heaviest(clip.captions).text
    return [Ask(clip, place, instructed(prompt, text)) for place, prompt in enumerate(cfg.prompts)]


def ask_all(
    cfg: CaptionerConfig, model: AnsweringModel, todo: Sequence[Ask], answers: AnswerLog
) -> list[CaptionFailure]:
    """Put every answer into `answers` as soon as its batch is done; gives those that were not to be had."""
    failures: list[CaptionFailure] = []
    batches = _batches(cfg, todo)
    shown = {round(len(batches) * part / _LOGGED_LINES) for part in range(1, _LOGGED_LINES + 1)}
    seconds: list[float] = []
    done, last = 0, time.monotonic()
    for number, (batch, views) in enumerate(zip(batches, _views(cfg, batches), strict=True), start=1):
        failures += _ask_batch(model, batch, views, answers)
        done, now = done + sum(map(len, batch)), time.monotonic()
        seconds, last = [*seconds[1 - _PACE_BATCHES :], now - last], now
        if number in shown:
            left = format_seconds(eta_seconds(len(batches) - number, seconds))
            _log.info("caption: %d of %d captions, %s left", done, len(todo), left)
    return failures


def _ask_batch(
    model: AnsweringModel,
    batch: Sequence[Sequence[Ask]],
    views: Sequence[ClipView | DataError | None],
    answers: AnswerLog,
) -> list[CaptionFailure]:
    """One batch: the asks of some clips, each clip seen once for all of its prompts."""
    failures: list[CaptionFailure] = []
    seen = {asks[0].clip.key: view for asks, view in zip(batch, views, strict=True)}
    for asks in batch:
        view = seen[asks[0].clip.key]
        if isinstance(view, DataError):
            failures.append(_failure(asks[0], view))
    for place in sorted({ask.place for asks in batch for ask in asks}):
        requests: list[tuple[Ask, Request]] = []
        for ask in (ask for asks in batch for ask in asks if ask.place == place):
            view = seen[ask.clip.key]
            if not isinstance(view, DataError):
                requests.append((ask, Request(ask.prompt, view)))
        outcomes = model.answer([request for _, request in requests]) if requests else []
        good: list[tuple[str, str, Answer]] = []
        for (ask, _), outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, DataError):
                failures.append(_failure(ask, outcome, f"prompt {place + 1}: "))
            else:
                good.append((ask.clip.key, ask.prompt, outcome))
        answers.add(good)
    return failures


def _failure(ask: Ask, error: DataError, prefix: str = "") -> CaptionFailure:
    _log.warning("caption: %s: %s%s", ask.clip.file, prefix, error)
    return CaptionFailure(ask.clip.file, f"{prefix}{error}")


def _batches(cfg: CaptionerConfig, todo: Sequence[Ask]) -> list[list[list[Ask]]]:
    """Batches of clips, each with its asks; clips of a batch show equally many frames, since processors stack them."""
    clips = [list(asks) for _, asks in groupby(todo, key=lambda ask: ask.clip.key)]

    def frames_shown(asks: Sequence[Ask]) -> int:
        return len(frame_numbers(asks[0].clip.frames, cfg.frames)) if cfg.frames else 0

    batches: list[list[list[Ask]]] = []
    for _, group in groupby(sorted(clips, key=frames_shown), key=frames_shown):
        alike = list(group)
        batches += [alike[begin : begin + cfg.batch] for begin in range(0, len(alike), cfg.batch)]
    return batches


def _views(
    cfg: CaptionerConfig, batches: Sequence[Sequence[Sequence[Ask]]]
) -> Iterator[Sequence[ClipView | DataError | None]]:
    if cfg.frames is None or cfg.longest_side is None:
        return iter([[None] * len(batch) for batch in batches])
    return views_ahead([[asks[0].clip for asks in batch] for batch in batches], cfg.frames, cfg.longest_side)
