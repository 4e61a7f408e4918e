"""Damaged files of every format are read, or end in an error of ours; `guard` tells what reading them may not do."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import integers

from megavideo.errors import MegavideoError
from tests.fuzz.formats import Format, formats
from tests.fuzz.guard import MOST_GROWTH_BYTES, Guard, peak_bytes

NAMES = (
    "dataset dataset.json", "dataset index_v1.json", "dataset manifest_v1.jsonl", "dataset null_text.safetensors",
    "dataset shard", "encoders bytes_text.json", "encoders encoders.json", "encoders pca.json",
    "encoders pca.safetensors", "encode encode.json", "encode plan", "encode unit", "list clips.jsonl",
    "list ingest.json", "captions.jsonl", "sidecar", "part", "answers", "points.csv", "measured steps",
    "checkpoint as written", "checkpoint manifest", "checkpoint fragments", "run metrics.jsonl", "run stages.jsonl",
    "run faults.jsonl", "run validation.jsonl", "run config.yaml", "settings", "run code_version.json", "curriculum",
    "media .mp4", "media .mkv", "media .webm", "media .avi", "media .ts", "media .mov", "media .png", "media .jpg",
    "media .bmp", "media .tiff", "media .gif", "media .webp",
)  # fmt: skip
FEW, MANY = 15, int(os.environ.get("MEGAVIDEO_FUZZ", "100000"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Format]:
    return formats(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Format]) -> Guard:
    return Guard(tmp_path_factory.getbasetemp())


def read_damaged(format: Format, guard: Guard, number: int) -> str:
    """Read one damaged input; "read", or the error that refused it. Raises for anything else."""
    data = format.damaged(Random(number))
    with guard.watching(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            format.read(data)
            outcome = "read"
        except MegavideoError as error:
            str(error).encode("utf-8")  # a message that no log could take would be a traceback of its own
            assert "\n" not in str(error) and len(str(error)) < 4000, str(error)
            outcome = type(error).__name__
    trespasses, guard.trespasses = guard.trespasses, []
    assert trespasses == []
    return outcome


def test_all_formats_are_named(made: dict[str, Format]) -> None:
    assert set(made) == set(NAMES)


@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize("name", NAMES)
def test_a_few_damaged_inputs(name: str, made: dict[str, Format], guard: Guard) -> None:
    @settings(
        max_examples=FEW, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )  # fmt: skip
    @given(number=integers(0, 2**32))
    def look(number: int) -> None:
        read_damaged(made[name], guard, number)

    look()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_inputs(
    name: str, made: dict[str, Format], guard: Guard, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as MEGAVIDEO_FUZZ says; hypothesis would take most of the time for itself."""
    before, outcomes = peak_bytes(), Counter[str]()
    for number in range(MANY):
        try:
            outcomes[read_damaged(made[name], guard, number)] += 1
        except BaseException as error:
            error.add_note(f"{name}: damage {number} of {MANY}; before it {dict(outcomes)}")
            raise
    with capsys.disabled():
        print(f"\n{name}: {outcomes.total()} inputs, {dict(outcomes)}, {(peak_bytes() - before) >> 20} MB more")
    assert peak_bytes() - before < MOST_GROWTH_BYTES
