"""Rows of a manifest: by the regular expression and by the JSON parser alike, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from megavideo.data.dataset import manifest_rows
from megavideo.data.dataset.manifest_rows import ManifestRows
from megavideo.errors import DataError

ROWS = ManifestRows("there", "manifest_v1.jsonl", 1000, (1, 2, 2), 4, 8)


def row(index: int, **changed: Any) -> dict[str, Any]:
    """A row as encode writes them, with what stands behind the columns that are read."""
    caption = changed.get("caption", "a red kite")
    return {
        "sample_id": f"clip-{index}", "index": index, "latent": [3, 4, 6], "text_tokens": 7, "fps": 24.0,
        "caption": caption, "source": f"films/{index}.mp4", "pixels": [9, 32, 48],
        "captions": [{"text": caption, "weight": 0.5, "source": "given", "tokens": 7}, {}], "unit": "0-a",
        "scores": {"motion": 1e-05, "aesthetic": None, "own": -3}, **changed,
    }  # fmt: skip


def line(value: object, **spelling: Any) -> bytes:
    return (json.dumps(value, **({"ensure_ascii": False} | spelling)) + "\n").encode()


def is_fast(text: bytes) -> bool:
    return [bool(found[-1]) for found in manifest_rows._ROW.findall(text)] == [False]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in row(0).items() if key != name}


def reordered() -> dict[str, Any]:
    return dict(reversed(row(0).items()))


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        (line(row(0)), True),
        (line(row(0)).rstrip(b"\n"), True),
        (line(row(0, caption='a "red"\nkite \\ \u2028 \U0001f3a5')), True),
        (line(row(0, sample_id="Ω", source="Фильм.mp4", caption="風箏")), True),
        (line(row(0, fps=30)), True),
        (line(row(0, fps=1.5e-3)), True),
        (line(row(0, text_tokens=0)), True),
        (line(without("pixels")), True),
        (line(without("scores")), True),
        (line(row(0, captions=[])), True),
        (line(row(0, sample_id='a "b"')), False),
        (line(row(0, source="a\\b")), False),
        (line(row(0), separators=(",", ":")), False),
        (line(row(0, sample_id="Ω"), ensure_ascii=True), False),
        (line(reordered()), False),
        (line(row(0)).replace(b"\n", b"\r\n"), False),
        (line(row(0, deep=[[{"a": [1]}]])), False),
        (line(row(0))[:-2] + b', "pixels": [1, 2, 3]}\n', False),  # JSON takes the last of a name
        (line(row(0))[:-2] + b', "pix\\u0065ls": [1, 2, 3]}\n', False),
    ],
)
def test_both_ways_give_what_json_says(text: bytes, fast: bool) -> None:
    assert is_fast(text) == fast
    part, expected = ROWS.parse(0, text), json.loads(text)
    (sample,) = part.samples()
    latent = [sample.latent.t, sample.latent.h, sample.latent.w]
    told = [sample.sample_id, sample.index, latent, sample.text_tokens, sample.fps, sample.caption, sample.source]
    names = ("sample_id", "index", "latent", "text_tokens", "fps", "caption", "source")
    assert told == [expected[name] for name in names]
    assert part.pixels.tolist() == [expected.get("pixels", [9, 32, 48])]
    assert (part.latent.dtype, part.pixels.dtype, part.fps.dtype) == (np.int64, np.int64, np.float64)


def test_rows_with_and_without_pixels_together() -> None:
    rows = [row(0), {**row(1), "latent": [1, 2, 2]}, row(2, pixels=[5, 6, 7])]
    del rows[1]["pixels"]
    assert ROWS.parse(0, b"".join(map(line, rows))).pixels.tolist() == [[9, 32, 48], [1, 16, 16], [5, 6, 7]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"\n", "line 503: not valid JSON"),
        (b"{}\n", "line 503: sample_id: it is missing"),
        (b"[]\n", "line 503: "),
        (line(row(502))[:-3] + b"\n", "line 503: not valid JSON"),
        (line(row(502)) [:-1] + b"}\n", "line 503: not valid JSON: trailing"),
        (line(row(502)).replace(b"clip", b"cl\x01p"), "line 503: not valid JSON: control character"),
        (line(row(502)).replace(b"clip", b"cl\xffp"), "line 503: .*utf-8"),
        (line(row(502, latent=[3, 4, 5])), r"line 503: sample clip-502 does not divide by patch \(1, 2, 2\)"),
        (line(row(502, latent=[3, 4])), r"line 503: latent\.2: it is missing"),
        (line(row(502, latent=[3, 4, -6])), r"line 503: latent\.2: it is -6, and should be"),
        (line(row(502, pixels=[9, 32, 2**31])), r"line 503: pixels\.2: it is 2147483648, and should be"),
        (line(row(502, text_tokens=True)), "line 503: text_tokens: it is True, and should be a valid integer"),
        (line(row(502, text_tokens=7.5)), "line 503: text_tokens: it is 7.5, and should be a valid integer"),
        (line(row(502, fps="fast")), "line 503: fps: it is 'fast', and should be a valid number"),
        (line(row(502, fps=0.0)), r"line 503: fps is 0\.0"),
        (line(row(502, fps=1)).replace(b'"fps": 1,', b'"fps": 1e999,'), "line 503: fps is inf"),
        (line(row(502, fps=-8.0)), "line 503: fps: it is -8.0, and should be greater than 0"),
        (line(row(502, fps=float("nan"))), "line 503: fps: it is nan, and should be a finite number"),
        (line(row(502, sample_id=3)), "line 503: sample_id: it is 3, and should be a valid string"),
        (line(row(502, sample_id="\ud800"), ensure_ascii=True), "line 503: not valid JSON: .*hex escape"),
        (line(row(502, caption="half \ud83d"), ensure_ascii=True), "line 503: not valid JSON: .*hex escape"),
        (line(row(503)), "line 503: its indices are not 0 to 999 in order"),
        (line(row(502)).replace(b'"index": 502', b'"index": 0502'), "line 503: not valid JSON: invalid number"),
        (line(row(10**30)), "line 503: index: it is 10{30}, and should be"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(bad: bytes, message: str) -> None:
    text = b"".join(bad if index == 502 else line(row(index)) for index in range(500, 510))
    with pytest.raises(DataError, match=rf"there/manifest_v1\.jsonl: damaged \({message}.*Remedy"):
        ROWS.parse(500, text)


def test_more_rows_than_there_are_samples() -> None:
    with pytest.raises(DataError, match="line 1001: its indices are not 0 to 999 in order"):
        ROWS.parse(998, b"".join(line(row(index)) for index in (998, 999, 1000)))


def damages(text: bytes, count: int) -> Iterator[bytes]:
    """The line with a byte or two of it lost, doubled, exchanged or changed."""
    rng = random.Random(0)
    alphabet = b'{}[]":,\\0123456789.eE+- \ntrufalsn\x00\xc3'
    for _ in range(count):
        data = bytearray(text)
        for _ in range(rng.choice((1, 1, 2))):
            place, other = rng.randrange(len(data)), rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    del data[place]
                case 1:
                    data.insert(place, data[place])
                case 2:
                    data[place], data[other] = data[other], data[place]
                case _:
                    data[place] = rng.choice(alphabet)
        yield bytes(data)


def test_no_damage_passes_that_json_would_see() -> None:
    whole = line(row(0, caption='say "hi"\\'))
    refused = 0
    for text in damages(whole, 4000):
        try:
            part = ROWS.parse(0, text)
        except DataError:
            refused += 1
            continue
        rows = [json.loads(each) for each in text.splitlines()] if text.count(b"\n") > 1 else [json.loads(text)]
        assert [(s.sample_id, s.caption, s.fps) for s in part.samples()] == [
            (each["sample_id"], each["caption"], each["fps"]) for each in rows
        ]
        assert part.text.tolist() == [each["text_tokens"] for each in rows]
    assert 1000 < refused < 4000  # a letter of a caption changes nothing that can be seen here


def test_time_is_linear_in_what_looks_like_a_row() -> None:
    """Nothing is tried over and over: an expression that backs up would take years for this."""
    open_ended = line(row(0, caption="\\" * 20_000, captions=[{"text": "a" * 9}] * 2000))
    with pytest.raises(DataError, match="line 1"):
        ROWS.parse(0, open_ended[:-3] + b"\n")
