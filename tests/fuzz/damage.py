"""Ways to damage what is well formed: bytes, lines and values of JSON. All randomness is that of the `rng` given."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Damage = Callable[[Random], bytes]

# what has broken readers elsewhere: numbers beyond any type, names that lead away, text that cannot be written
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", " ", "0", "-1", "NaN", "sixty", "\0", "a\0b", "\ud800", "\udcff", "n" * 5000, "../" * 30 + "etc/passwd",
    "/etc/passwd", "..", ".", "a//b", "a/../../b", "~/.ssh/id_rsa", "C:\\a", "s3://a/b", "$(touch PWNED)", "{{7*7}}",
    "${oc.env:HOME}", "<script>alert(1)</script>", "=1+1", "ndarray:float16", "pkl", "json", "\u202e", "\r\n",
    [], [None], [0, 0, 0], [-4, -4], [10**6, 10**9], [999_999_999] * 3, {}, {"a": {}}, {"": ""}, {"__class__": "os"},
)  # fmt: skip
_RAW = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"1e999", b"NaN", b"\n", b",",
    b"}", b'"', b"\\ud800", b"\x80", b"&a [*a, *a]", b"!!python/object/apply:os.system ['true']", b"\xed\xa0\x80",
)  # fmt: skip
_LENGTHS = (1, 1, 2, 4, 8, 64, 1024)
_NAMES = ("", "x", "\ud800", "../x", "__class__", "a\0b")
_STEPS = (-1, 1, 2**31, -(2**31), 10**9)


def damaged_bytes(*seeds: bytes) -> Damage:
    """One of `seeds` with one to four changes: bytes flipped, cut, doubled, moved, or replaced by what is hostile."""
    return lambda rng: _changed_bytes(rng, rng.choice(seeds))


def damaged_json(*seeds: Any) -> Damage:
    """Texts of JSON: `seeds` with one to three values changed at any depth, and as text every fourth time."""
    texts = [as_json(seed) for seed in seeds]

    def damage(rng: Random) -> bytes:
        if not rng.randrange(4):
            return _changed_bytes(rng, rng.choice(texts))
        value = copy.deepcopy(rng.choice(seeds))
        for _ in range(rng.randint(1, 3)):
            value = _changed(rng, value)
        return as_json(value)

    return damage


def damaged_lines(content: bytes) -> Damage:
    """Lines of JSON, one of them damaged as a value, or the whole text damaged."""
    lines = content.splitlines()
    row = damaged_json(*(json.loads(line) for line in lines))

    def damage(rng: Random) -> bytes:
        if not rng.randrange(4):
            return _changed_bytes(rng, content)
        place = rng.randrange(len(lines))
        return b"\n".join([*lines[:place], row(rng), *lines[place + 1 :]]) + b"\n"

    return damage


def as_json(value: Any) -> bytes:
    """As Python writes it: with NaN, and with lone surrogates as escapes."""
    return json.dumps(value).encode()


def _changed_bytes(rng: Random, content: Sequence[int]) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        size = max(1, len(data))
        place, other, length = rng.randrange(size), rng.randrange(size), rng.choice(_LENGTHS)
        match rng.randrange(7):
            case 0 if data:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data[place : place + length] = rng.randbytes(rng.randint(0, length))
            case 5:
                data[place:place] = rng.choice(_RAW)
            case _:
                data[place : place + length] = data[other : other + length]
    return bytes(data)


def _changed(rng: Random, value: Any) -> Any:
    if isinstance(value, dict | list) and value and rng.randrange(6):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        match rng.randrange(10):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[rng.choice(_NAMES)] = value[key]
            case 1 | 2 if isinstance(value, list):
                value.insert(key, copy.deepcopy(value[key]))
            case _:
                value[key] = _changed(rng, value[key])
        return value
    if type(value) is int and rng.randrange(2):
        return value + rng.choice(_STEPS)
    if isinstance(value, str) and value and rng.randrange(2):
        place = rng.randint(0, len(value))
        return value[:place] + str(rng.choice(HOSTILE)) + value[place:]
    return copy.deepcopy(rng.choice(HOSTILE))
