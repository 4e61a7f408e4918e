"""Answers as they come in, in a file that outlives the run: whole lines, flushed to disk.

The first line says what the answers depend on beside clip and prompt. An interrupted run leaves at most one broken
line at the end, which is cut off. Each answer is kept under its clip and prompt, so that a run with one prompt more
asks for that one alone. Processes that share the work write one file each, and read those of the others.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from megavideo.border.json_text import parse_json
from megavideo.border.names import shown
from megavideo.border.refused import Refused
from megavideo.config.texts import Share
from megavideo.encoders.captioner.answer import Answer
from megavideo.errors import ConfigError, DataError, OutputInUse

_FORMAT = 1


@dataclass(frozen=True)
class _Head:
    format: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Answered:
    clip: str
    prompt: str
    text: str
    cut: bool


class AnswerLog:
    """The answers in `folder`, of which this process writes those of its `share`; use it as a context.

    Raises ConfigError where there are answers asked for with other `settings` that are not to be overwritten, DataError
    where a file is damaged or cannot be written, and OutputInUse where another task writes it.
    """

    def __init__(self, folder: Path, share: Share, settings: Mapping[str, Any], overwrite: bool) -> None:
        self._folder = folder
        self._path = folder / (f"answers-{share.index}-of-{share.count}.jsonl" if share.count > 1 else "answers.jsonl")
        self._settings = dict(settings)
        self._overwrite = overwrite
        self._known: dict[tuple[str, str], Answer] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written ({error.strerror}). Remedy: check out=") from error
        try:
            self._open(alone=share.count == 1)
            self.read_others()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, clip: str, prompt: str) -> Answer | None:
        """The answer for a clip and a prompt; None where it has not been given."""
        return self._known.get((clip, _digest(prompt)))

    def add(self, rows: Iterable[tuple[str, str, Answer]]) -> None:
        """Keep answers as (clip, prompt, answer), on disk before this returns."""
        lines = []
        for clip, prompt, answer in rows:
            self._known[clip, _digest(prompt)] = answer
            lines.append({"clip": clip, "prompt": _digest(prompt), "text": answer.text, "cut": answer.cut})
        self._append(lines)

    def read_others(self) -> None:
        """Take in what other processes have written since."""
        for path in sorted(self._folder.glob("answers*.jsonl")):
            if path != self._path:
                self._take(path, path.read_bytes(), skip_foreign=self._overwrite)

    def _open(self, alone: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputInUse(
                f"{self._path}: another task writes here. Remedy: wait for it, or give each task a shard= of its own"
            ) from error
        if self._overwrite:
            self._file.truncate(0)
            for path in self._folder.glob("answers-*-of-*.jsonl") if alone else ():
                path.unlink()
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        if whole:
            self._take(self._path, whole, skip_foreign=False)
        else:
            self._append([{"format": _FORMAT, "settings": self._settings}])

    def _take(self, path: Path, content: bytes, skip_foreign: bool) -> None:
        """Read the whole lines of a file; `skip_foreign` passes over one of other settings."""
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        if not lines:
            return
        others = self._others(path, lines[0])
        if others and skip_foreign:
            return
        if others:
            names = [name if name in self._settings else shown(name) for name in others]
            rule = f"holds answers asked for with another {' and another '.join(names)}"
            remedy = "give another out=, or overwrite=true to ask for all captions anew"
            raise ConfigError("out", str(self._folder), rule, remedy)
        for number, line in enumerate(lines[1:], start=2):
            try:
                row = parse_json(line, _Answered)
                self._known[row.clip, row.prompt] = Answer(row.text, row.cut)
            except Refused as error:
                raise _damaged(path, number, error) from error

    def _others(self, path: Path, line: bytes) -> list[str]:
        """Names of the settings that a file was written with other values of."""
        try:
            head = parse_json(line, _Head)
            stored = head.settings
            if head.format != _FORMAT:
                raise Refused(f"format {head.format}")
        except Refused as error:
            raise _damaged(path, 1, error) from error
        names = stored.keys() | self._settings.keys()
        return sorted(name for name in names if stored.get(name) != self._settings.get(name))

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(
                f"{self._path}: cannot be written ({error.strerror}). Remedy: free space, then run the same command "
                "again, which goes on from here"
            ) from error


def _damaged(path: Path, line: int, error: Exception) -> DataError:
    return DataError(
        f"{path}, line {line}: damaged ({error}). Remedy: take the line out, or give overwrite=true to ask for all "
        "captions anew"
    )


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
