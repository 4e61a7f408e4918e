"""What is asked of a model that writes captions, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megavideo.errors import DataError

_THOUGHT = re.compile(r"^\s*<think>.*?(</think>|\Z)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_QUOTES = (('"', '"'), ("“", "”"), ("«", "»"), ("„", "“"))
_SENTENCE_END = re.compile(r"[.!?。！？…](?=\s|$|[\"”»)])|[。！？]")


@dataclass(frozen=True)
class ClipView:
    """Frames of a clip, uint8 [T, H, W, 3], and where they stand in it: frame numbers of `total` at `fps`."""

    frames: np.ndarray
    numbers: tuple[int, ...]
    total: int
    fps: float


@dataclass(frozen=True)
class Request:
    """A prompt, with what the model shall look at; None where it reads text alone."""

    prompt: str
    view: ClipView | None = None


@dataclass(frozen=True)
class Answer:
    """A caption of one line. `cut` is set where the model met its limit of tokens before it ended."""

    text: str
    cut: bool


class AnsweringModel(Protocol):
    """A language model, or a vision-language model. `identity` tells models apart whose answers may differ."""

    identity: Mapping[str, str]

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        """One answer a request, or why this request has none; what concerns all of them is raised."""
        ...


def to_answer(raw: str, cut: bool) -> Answer | DataError:
    """The text of a model as a caption: without its thoughts, quotation marks, line breaks and control characters.

    A cut text ends at its last whole sentence, where it has one.
    """
    text = " ".join(_CONTROL.sub(" ", _THOUGHT.sub("", raw, count=1)).split())
    for begin, end in _QUOTES:
        if len(text) > 1 and text.startswith(begin) and text.endswith(end) and end not in text[1:-1]:
            text = text[1:-1].strip()
    if cut:
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        text = text[: ends[-1]] if ends else text
    return Answer(text, cut) if text else DataError("the model's answer is empty")


def instructed(instruction: str, text: str) -> str:
    """The prompt of a model that shall do with `text` what `instruction` says."""
    return f"{instruction.strip()}\n\n{text.strip()}"
