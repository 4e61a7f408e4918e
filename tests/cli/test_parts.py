"""The parts of the command line: sorting words, writing reports, keeping standard output clean."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megavideo.cli.arguments import parse_arguments, split_verb
from megavideo.cli.describe import describe_fields
from megavideo.cli.output import launched_as, leads, stdout_kept_clean, to_json
from megavideo.cli.verb import TextOption
from megavideo.cli.verb_table import find_verb, verb_names
from megavideo.errors import ConfigError

PROMPT = TextOption("--prompt", "TEXT", "", repeats=True)


def test_words_are_sorted() -> None:
    assert split_verb(["-v", "train", "a=1", "--json"]) == ("train", ["-v", "a=1", "--json"])
    assert split_verb(["--json"]) == (None, ["--json"])
    found = parse_arguments(["a=--x", "--json", "--prompt", "b=1", "-v", "--prompt=", "--prompt==c"], [PROMPT])
    assert found.overrides == ("a=--x",)
    assert found.switches == {"json", "verbose"}
    assert found.texts == {"--prompt": ("b=1", "", "=c")}


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(ConfigError, match="--json"):
        parse_arguments(["--jsn"])
    with pytest.raises(ConfigError, match="no such option"):
        parse_arguments(["-x=3"])


def test_json_holds_what_reports_hold() -> None:
    report = {
        "path": Path("a/b"),
        "loss": float("inf"),
        "steps": np.int64(3),
        "mean": np.float32(0.5),
        "rows": ((1, None),),
    }
    text = to_json(report)
    assert json.loads(text) == {"path": "a/b", "loss": None, "steps": 3, "mean": 0.5, "rows": [[1, None]]}
    assert "\n" not in to_json({"text": "a\nb"})


def test_description_counts_long_lists() -> None:
    @dataclass(frozen=True)
    class Report:
        read: int
        loss: float
        resumed: bool
        rejected: list[dict[str, Any]]

    text = describe_fields(Report(14, 0.123456789, False, [{"file": f"{n}.mp4", "reason": "bad"} for n in range(25)]))
    lines = text.splitlines()
    assert lines[0].split() == ["read", "14"]
    assert lines[1].split() == ["loss", "0.123457"]
    assert lines[2].split() == ["resumed", "no"]
    assert lines[4] == "  file=0.mp4  reason=bad"
    assert lines[-1] == "  ... and 5 more"


def test_standard_output_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), stdout_kept_clean():
        os.write(1, b"inside\n")
        raise RuntimeError
    os.write(1, b"outside\n")
    out, err = capfd.readouterr()
    assert (out, err) == ("outside\n", "inside\n")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, True), ({"RANK": "0", "SLURM_PROCID": "5"}, True), ({"RANK": "2"}, False), ({"SLURM_PROCID": "0"}, True)],
)
def test_rank_0_leads(environment: dict[str, str], expected: bool) -> None:
    assert leads(environment) is expected


def test_the_number_of_processes_is_read() -> None:
    assert launched_as({}) == (0, 1)
    assert launched_as({"RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == (1, 4)
    assert launched_as({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == (3, 8)
    assert launched_as({"RANK": ""}) == (0, 1)


def test_each_verb_says_what_it_is() -> None:
    for name in verb_names():
        verb = find_verb(name)
        assert verb.name == name
        assert verb.summary
        assert verb.examples
