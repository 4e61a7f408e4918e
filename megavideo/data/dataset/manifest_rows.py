"""Lines of a manifest into columns, checked against what the dataset says of its samples.

A row that is spelled as encode spells it is taken apart by one regular expression, several times faster than by making
objects of its JSON; any other goes through the JSON parser, and both give the same. The expression takes no line that
is not JSON, and none in which a name comes twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from megavideo.border.fields import Positive
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.errors import DataError
from megavideo.types import Grid, SampleInfo

# Possessive throughout, so that time is linear in the line. A plain string has no escapes and is its own value.
_PLAIN = rb'[^"\\\x00-\x1f]*+'
_UNIT = rb"u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"  # halves of a pair stand together alone
_UNIT += rb"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
_STRING = rb'"' + _PLAIN + rb'(?:\\(?:["\\/bfnrt]|' + _UNIT + rb")" + _PLAIN + rb')*+"'
_COUNT = rb"(?:0|[1-9][0-9]{0,8}+)"  # of pixels, cells or tokens: int32 holds it
_INDEX = rb"(?:0|[1-9][0-9]{0,17}+)"
_SIZE = rb", ".join([_COUNT] * 3)
_POSITIVE = rb"(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+"
_SCALAR = rb"(?:" + _STRING + rb"|-?+" + _POSITIVE + rb"|null|true|false)"
_OBJECT = rb"\{(?:" + rb"%b: %b(?:, %b: %b)*+" % (_STRING, _SCALAR, _STRING, _SCALAR) + rb")?+\}"
_FLAT = rb"(?:" + _OBJECT + rb"|" + _SCALAR + rb")"
_VALUE = rb"(?:\[(?:" + _FLAT + rb"(?:, " + _FLAT + rb")*+)?+\]|" + _FLAT + rb")"
_READ = ("sample_id", "index", "latent", "text_tokens", "fps", "caption", "source", "pixels")
_OTHER_NAME = rb'"(?!(?:' + "|".join(_READ).encode() + rb')")' + _PLAIN + rb'"'
_ROW = re.compile(
    rb'\{"sample_id": "(' + _PLAIN + rb')", "index": (' + _INDEX + rb'), "latent": \[(' + _SIZE + rb")\], "
    rb'"text_tokens": (' + _COUNT + rb'), "fps": (' + _POSITIVE + rb'), "caption": (' + _STRING + rb"), "
    rb'"source": "(' + _PLAIN + rb')"(?:, "pixels": \[(' + _SIZE + rb")\])?"
    rb"(?:, " + _OTHER_NAME + rb": " + _VALUE + rb")*+\}(?:\n|\Z)"
    rb"|([^\n]*+\n|[^\n]++)"  # any other line
)
_Row = tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes]  # groups of _ROW


@dataclass(frozen=True)
class ManifestPart:
    """Consecutive rows, m of them, from sample `first`.

    latent [m, 3] is the size (t, h, w) before patchifying, text [m] the caption's tokens, fps [m] frames a second,
    pixels [m, 3] frames, height and width of the clip. Ids and sources are UTF-8, captions strings of JSON.
    """

    first: int
    sample_ids: tuple[bytes, ...]
    sources: tuple[bytes, ...]
    captions: tuple[bytes, ...]
    latent: npt.NDArray[np.int64]
    text: npt.NDArray[np.int64]
    fps: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.int64]

    @property
    def end(self) -> int:
        """The sample after the last one."""
        return self.first + len(self.sample_ids)

    def samples(self) -> Iterator[SampleInfo]:
        """The rows one by one."""
        columns = (
            self.sample_ids, range(self.first, self.end), self.latent.tolist(), self.text.tolist(), self.fps.tolist(),
            self.captions, self.sources,
        )  # fmt: skip
        for name, index, latent, text, fps, caption, source in zip(*columns, strict=True):
            yield SampleInfo(name.decode(), index, Grid(*latent), text, fps, parse_json(caption, str), source.decode())


@dataclass(frozen=True)
class ManifestRows:
    """What a dataset says of the rows of its manifest: how many there are, and the patch that divides every latent.

    Ratios are pixels of a latent cell, for rows that do not tell their pixels.
    """

    uri: str
    name: str
    num_samples: int
    patch: tuple[int, int, int]
    time_ratio: int
    space_ratio: int

    def parse(self, first: int, lines: bytes) -> ManifestPart:
        """The rows of whole lines, one or more, of which the first is due to be sample `first`.

        Raises DataError, naming the line, for one that is no such row.
        """
        self._check_text(first, lines)
        rows: list[_Row] = _ROW.findall(lines)
        columns = tuple(zip(*rows, strict=True))
        if any(columns[-1]):
            parsed = (self._parsed(first + number, row[-1]) if row[-1] else row for number, row in enumerate(rows))
            columns = tuple(zip(*parsed, strict=True))
        ids, index, latent, text, fps, captions, sources, pixels, _ = columns
        numbers = _integers(chain(index, latent, text))
        count = len(rows)
        sizes = numbers[count : 4 * count].reshape(count, 3)
        self._check(first, numbers[:count], sizes, ids)
        rates = np.array(list(map(float, fps)), np.float64)
        strange = np.flatnonzero(~(np.isfinite(rates) & (rates > 0)))
        if len(strange):
            raise self.damaged(f"fps is {rates[strange[0]]}", first + int(strange[0]))
        return ManifestPart(
            first=first,
            sample_ids=ids,
            sources=sources,
            captions=captions,
            latent=sizes,
            text=numbers[4 * count :],
            fps=rates,
            pixels=self._pixels(pixels, sizes),
        )

    def damaged(self, reason: object, sample: int | None = None) -> DataError:
        """The error for this manifest, or for the line of one of its samples."""
        line = "" if sample is None else f"line {sample + 1}: "
        return damaged(self.uri, self.name, f"{line}{reason}")

    def disordered(self, sample: int) -> DataError:
        """The error for a line that is not the row of this sample, or for one too few or too many."""
        return self.damaged(f"its indices are not 0 to {self.num_samples - 1} in order", sample)

    def _check_text(self, first: int, lines: bytes) -> None:
        try:
            lines.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(error, first + lines.count(b"\n", 0, error.start)) from error

    def _parsed(self, sample: int, line: bytes) -> _Row:
        """A row that is spelled in another way, as encode would have spelled it."""
        try:
            row = parse_json(line, _Line)
        except Refused as error:
            raise self.damaged(error, sample) from error
        return (
            row.sample_id.encode("utf-8"), b"%d" % row.index, _sizes(row.latent), b"%d" % row.text_tokens,
            repr(row.fps).encode(), json.dumps(row.caption).encode(), row.source.encode("utf-8"),
            b"" if row.pixels is None else _sizes(row.pixels), b"",
        )  # fmt: skip

    def _check(
        self, first: int, index: npt.NDArray[np.int64], latent: npt.NDArray[np.int64], ids: tuple[bytes, ...]
    ) -> None:
        strange = np.flatnonzero(index != np.arange(first, first + len(index)))
        if len(strange):
            raise self.disordered(first + int(strange[0]))
        if first + len(index) > self.num_samples:
            raise self.disordered(self.num_samples)
        uneven = np.flatnonzero((latent % self.patch).any(axis=1))
        if len(uneven):
            row = int(uneven[0])
            raise self.damaged(f"sample {ids[row].decode()} does not divide by patch {self.patch}", first + row)

    def _pixels(self, told: tuple[bytes, ...], latent: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if all(told):
            return _integers(told).reshape(-1, 3)
        cell = (self.time_ratio, self.space_ratio, self.space_ratio)
        pixels = (latent - (1, 0, 0)) * cell + (1, 0, 0)
        rows = [number for number, size in enumerate(told) if size]
        pixels[rows] = _integers(filter(None, told)).reshape(-1, 3)
        return pixels


def damaged(uri: str, name: str, reason: object) -> DataError:
    """The error for a small file of a dataset that cannot be used."""
    return DataError(
        f"{uri}/{name}: damaged ({reason}). Remedy: restore it from a copy, or encode again with overwrite=true"
    )


def _integers(texts: Iterable[bytes]) -> npt.NDArray[np.int64]:
    """Numbers of texts that hold one each, or several with commas between; none is signed or longer than int64."""
    values: npt.NDArray[np.int64] = np.fromstring(b", ".join(texts), np.int64, sep=",")  # type: ignore[arg-type]
    return values


def _sizes(value: tuple[int, int, int]) -> bytes:
    return b"%d, %d, %d" % value


_Cells = Annotated[int, Interval(ge=0, le=999_999_999)]


@dataclass(frozen=True)
class _Line:
    """A row as encode writes it."""

    sample_id: str
    index: Annotated[int, Interval(ge=0, le=10**18 - 1)]
    latent: tuple[_Cells, _Cells, _Cells]
    text_tokens: _Cells
    fps: Positive
    caption: str
    source: str
    pixels: tuple[_Cells, _Cells, _Cells] | None = None
