"""JSON, YAML and files from outside: what is refused, with which words, and that nothing waits for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megavideo.border.fields import Count, Finite, Size
from megavideo.border.files import read_file
from megavideo.border.json_text import parse_json, read_json
from megavideo.border.refused import Refused
from megavideo.border.tensor_file import open_tensors, parse_tensors
from megavideo.border.yaml_text import parse_yaml
from megavideo.config.dump import read_config
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError
from megavideo.observe.report.record import read_record
from megavideo.observe.status import read_status


@dataclass(frozen=True)
class Thing:
    size: Size
    count: Count = 0
    value: Finite = 0.0
    name: str = ""
    sides: tuple[Size, Size] | None = None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{}", "size: it is missing"),
        (b'{"size": "64"}', "size: it is '64', and should be a valid integer"),
        (b'{"size": true}', "size: it is True, and should be a valid integer"),
        (b'{"size": 1.0}', "size: it is 1.0, and should be a valid integer"),
        (b'{"size": 0}', "size: it is 0, and should be greater than or equal to 1"),
        (b'{"size": 1, "count": -1}', "count: it is -1, and should be greater than or equal to 0"),
        (b'{"size": 1, "count": 1' + b"0" * 30 + b"}", "count: it is 1000000000"),
        (b'{"size": 1, "value": NaN}', "value: it is nan, and should be a finite number"),
        (b'{"size": 1, "value": 1e999}', "value: it is inf, and should be a finite number"),
        (b'{"size": 1, "name": "\\ud800"}', "not valid JSON: "),
        (b'{"size": 1, "name": "\xff"}', "not valid JSON: "),
        (b'{"size": 1, "sides": [3]}', "sides.1: it is missing"),
        (b"[" * 100_000, "not valid JSON: recursion limit exceeded"),
        (b'{"size": ' + b"9" * 5000 + b"}", "not valid JSON: number out of range"),
        (b"", "not valid JSON: "),
        (b"null", "it is None, and should be an object"),
    ],
)
def test_what_is_no_thing_is_refused_with_its_field(text: bytes, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_json(text, Thing)
    assert str(caught.value).startswith(reason) and len(str(caught.value)) < 300


def test_what_is_right_is_read_once() -> None:
    text = '\ufeff{"size": 3, "value": 2, "sides": [1, 2], "unknown": {"deep": [1]}}'.encode()
    assert parse_json(text, Thing) == Thing(3, 0, 2.0, "", (1, 2))
    assert parse_json('{"a": [1, null, "é"]}') == {"a": [1, None, "é"]}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [" + "*a, " * 40 + "x]\nc: &c [" + "*b, " * 40 + "x]\nd: &d [" + "*c, " * 40 + "x]\n",
        "a: &a [*a]", "[" * 1000, "{a: " * 1000, "!!python/object/apply:os.system [true]", "a: !!timestamp 2001-99-99",
        "? [1, 2]\n: 3", "a: *b", "\x00", b"\xff\xfe\xfd", "a: !!int x",
    ],
)  # fmt: skip
def test_yaml_that_is_refused(text: str | bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value) and str(caught.value)


def test_yaml_with_anchors_of_a_user_is_read() -> None:
    assert parse_yaml("base: &base {steps: 3}\na: {<<: *base, lr: 0.1}\nb: *base") == {
        "base": {"steps": 3}, "a": {"steps": 3, "lr": 0.1}, "b": {"steps": 3}
    }  # fmt: skip


def _soon(work: Callable[[], Any]) -> Any:
    """What `work` gives, or the error that it raises; it may not take long."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # noqa: BLE001 - given to the test
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert outcome, "it waits for a file that gives nothing"
    return outcome[0]


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / name for name in ("config.yaml", "metrics.jsonl", "stages.jsonl", "faults.jsonl")]
    for path in paths:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "zero":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
    for path in paths:
        assert isinstance(_soon(lambda path=path: read_file(path)), Refused)
        assert isinstance(_soon(lambda path=path: read_json(path)), Refused)
        assert isinstance(_soon(lambda path=path: open_tensors(path)), Refused)
    assert isinstance(_soon(lambda: read_config(TrainRun, paths[0])), ConfigError)
    assert _soon(lambda: read_status(tmp_path, 10)).step == 0
    assert _soon(lambda: read_record(tmp_path)).damaged


def test_files_longer_than_expected_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"1" * 100)
    assert read_file(path, 100) == b"1" * 100
    with pytest.raises(Refused, match="it has 100 bytes or more, and at most 99 are read"):
        read_file(path, 99)


def test_safetensors_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no safetensors file"):
        parse_tensors(b"\xff" * 64)
    (tmp_path / "a").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    assert list(open_tensors(tmp_path / "a").keys()) == []
