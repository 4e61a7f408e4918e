"""Checkpoints with values that are not finite: counted by tensor, and neither resumed from nor written anew."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.checkpoint.finite import FiniteCount, NonFinite, count_non_finite
from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.read import CheckpointReader
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.cli.main import main
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.data.storage.open import open_storage
from megavideo.errors import CheckpointError
from tests.checkpoint.states import SHAPES, fragments
from tests.checkpoint.test_verb import call, told

BAD = {("weight", "b.bias"): 2, ("ema", "c.weight"): 3, ("exp_avg", "a.weight"): 1}


def save(folder: Path, spoil: bool) -> Path:
    """A run folder with a checkpoint, whose values of each kind of state are spoilt where that is asked for."""
    states = fragments(1)
    for fragment in states if spoil else ():
        for state, values in fragment.states.items():
            for place in range(BAD.get((state, fragment.name), 0)):
                values[5 - place] = (math.nan, math.inf, -math.inf)[place]
    with Checkpointer(CheckpointConfig(), folder / "checkpoints", SaveGroup(0, 1, "one")) as checkpointer:
        checkpointer.save(Header(1, "dp1-zero1", "name: x\n"), states)
        checkpointer.wait(required=True)
    return folder


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("spoilt") / "run", spoil=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_value_that_is_not_finite_counts(dtype: torch.dtype, value: float) -> None:
    values = torch.linspace(-3, 3, 1000).to(dtype)
    assert count_non_finite(values) == 0
    values[[0, 517, 999]] = value
    assert count_non_finite(values) == 3
    assert count_non_finite(values.view(10, 100)) == 3
    assert count_non_finite(torch.empty(0, dtype=dtype)) == 0


def test_parts_of_a_tensor_are_added_up() -> None:
    count = FiniteCount()
    for part in (torch.ones(4), torch.full((3,), math.nan), torch.tensor([1.0, math.inf])):
        count.add("weight", "a", part)
    count.add("ema", "a", torch.ones(4))
    assert count.found == (NonFinite("weight", "a", 4, 9),)


@pytest.mark.parametrize("in_store", [False, True])
def test_verify_names_every_tensor_and_its_count(spoilt: Path, s3_bucket: str, in_store: bool) -> None:
    place: Path | str = spoilt
    if in_store:
        place = f"{s3_bucket}/runs/x"
        storage = open_storage(place)
        for path in sorted((spoilt / "checkpoints").rglob("*.*")):
            storage.upload(path, path.relative_to(spoilt / "checkpoints").as_posix())
    text, found, failed = told(call("verify", place))
    assert failed
    (row,) = found["checkpoints"]
    assert row["state"] == "not finite"
    named = {(tensor["state"], tensor["name"]): (tensor["count"], tensor["numel"]) for tensor in row["non_finite"]}
    assert named == {key: (count, math.prod(SHAPES[key[1]])) for key, count in BAD.items()}
    assert "FAULT: " in text and "step_00000001: 3 tensors hold values that are not finite: " in text
    assert "weight of 'b.bias' (2 of 7 values)" in text and "ema of 'c.weight' (3 of 200000 values)" in text
    # by their hashes alone the files are good
    _, found, failed = told(call("verify", place, "values=false"))
    assert not failed and found["checkpoints"][0]["state"] == "good"


def test_the_command_ends_with_1(spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(spoilt)]) == 1
    assert "values that are not finite" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(spoilt), "values=false"]) == 0


def test_a_finite_checkpoint_is_good(tmp_path: Path) -> None:
    _, found, failed = told(call("verify", save(tmp_path / "run", spoil=False)))
    assert not failed and found["checkpoints"][0]["state"] == "good" and found["checkpoints"][0]["non_finite"] == []


def test_a_file_is_looked_at_in_small_pieces(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    add = FiniteCount.add

    def noted(self: FiniteCount, state: str, name: str, values: torch.Tensor) -> None:
        seen.append(values.numel())
        add(self, state, name, values)

    monkeypatch.setattr("megavideo.checkpoint.finite._CHUNK", 1 << 12)
    monkeypatch.setattr(FiniteCount, "add", noted)
    report: Any = call("verify", spoilt)
    assert max(seen) == 1 << 12 and sum(seen) == 3 * sum(map(math.prod, SHAPES.values()))
    assert {tensor.count for tensor in report.checkpoints[0].non_finite} == {1, 2, 3}


def test_reshard_refuses_it_and_leaves_nothing(spoilt: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not finite.*megavideo checkpoint verify"):
        call("reshard", spoilt, f"out={tmp_path / 'moved'}", "ranks=2")
    assert not list(tmp_path.glob("moved/*"))


def test_a_reader_tells_of_what_was_read_alone(spoilt: Path) -> None:
    reader = CheckpointReader(spoilt / "checkpoints" / "step_00000001")
    reader.value("weight", "a.weight", SHAPES["a.weight"])
    reader.check_finite()
    reader.value("weight", "b.bias", SHAPES["b.bias"])
    assert reader.non_finite == (NonFinite("weight", "b.bias", 2, 7),)
    with pytest.raises(CheckpointError, match=r"weight of 'b\.bias' \(2 of 7 values\)"):
        reader.check_finite()
