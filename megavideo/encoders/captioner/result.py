"""What captioning leaves: the captions of each clip with their weights, and a picture of some clips above theirs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megavideo.config.schema.captions import CaptionRun
from megavideo.data.clips.captions import WeightedCaption, heaviest
from megavideo.data.storage.files import writing
from megavideo.encoders.captioner.answer_log import AnswerLog
from megavideo.encoders.captioner.ask import Ask, asks_of
from megavideo.encoders.captioner.clips import SourceClip, frame_numbers, view_of
from megavideo.errors import DataError
from megavideo.observe.pictures import contact_sheet
from megavideo.observe.whole_file import replacing

_SOURCES = {"vlm": "vlm", "expand": "expanded"}
_SHEET_CLIPS = 12
_SHEET_FRAMES = 5
_SHEET_SIDE = 180

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionedClip:
    """A clip and all of its captions, at least one."""

    clip: SourceClip
    captions: tuple[WeightedCaption, ...]


@dataclass(frozen=True)
class PromptReport:
    """The captions that one prompt gave, and their lengths in words; `cut` of them met the limit of tokens."""

    prompt: str
    weight: float
    captions: int
    cut: int
    shortest_words: int
    mean_words: float
    longest_words: int


def captioned_clips(cfg: CaptionRun, clips: Sequence[SourceClip], answers: AnswerLog) -> list[CaptionedClip]:
    """The clips that have any caption, given or new."""
    captioned: list[CaptionedClip] = []
    for clip in clips:
        new = [
            WeightedCaption(answer.text, cfg.captioner.weights[ask.place], _SOURCES[cfg.captioner.kind])
            for ask in asks_of(clip, cfg.captioner)
            if (answer := answers.get(clip.key, ask.prompt)) is not None
        ]
        captions = weighted(clip.captions, cfg.given_weight, new)
        if captions:
            captioned.append(CaptionedClip(clip, captions))
    return captioned


def weighted(
    given: Sequence[WeightedCaption], given_weight: float, new: Sequence[WeightedCaption]
) -> tuple[WeightedCaption, ...]:
    """The captions of a clip: those it had share `given_weight` as before; equal texts become one of both weights."""
    total = sum(caption.weight for caption in given)
    kept = [WeightedCaption(c.text, given_weight * c.weight / total, c.source) for c in given if given_weight > 0]
    merged: dict[str, WeightedCaption] = {}
    for caption in (*kept, *new):
        before = merged.get(caption.text, WeightedCaption(caption.text, 0.0, caption.source))
        merged[caption.text] = WeightedCaption(caption.text, before.weight + caption.weight, before.source)
    return tuple(merged.values())


def prompt_reports(cfg: CaptionRun, asks: Sequence[Ask], answers: AnswerLog) -> tuple[PromptReport, ...]:
    """One report a prompt, in the order of the settings."""
    reports: list[PromptReport] = []
    for place, (prompt, weight) in enumerate(zip(cfg.captioner.prompts, cfg.captioner.weights, strict=True)):
        mine = (answers.get(ask.clip.key, ask.prompt) for ask in asks if ask.place == place)
        given = [answer for answer in mine if answer is not None]
        words = [len(answer.text.split()) for answer in given] or [0]
        mean = round(sum(words) / len(words), 1)
        cut = sum(answer.cut for answer in given)
        reports.append(PromptReport(prompt, weight, len(given), cut, min(words), mean, max(words)))
    return tuple(reports)


def write_sheet(path: Path, kind: str, captioned: Sequence[CaptionedClip]) -> None:
    """A picture of some clips, each below the heaviest caption that a captioner of this kind wrote, else below any.

    Raises DataError where the disk refuses.
    """
    rows = []
    for place in frame_numbers(len(captioned), _SHEET_CLIPS):
        clip, captions = captioned[place].clip, captioned[place].captions
        best = heaviest([caption for caption in captions if caption.source == _SOURCES[kind]] or captions)
        try:
            frames = view_of(clip, _SHEET_FRAMES, _SHEET_SIDE).frames
        except DataError as error:
            _log.warning("caption: %s is not on the sheet: %s", clip.file, error)
            continue
        rows.append((f"{clip.file} [{best.source}]: {best.text}", frames))
    if rows:
        with writing(path), replacing(path) as temporary:
            contact_sheet(rows, _SHEET_FRAMES, scale=1).save(temporary, "PNG")
