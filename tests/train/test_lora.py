"""Adapters trained by `megavideo train`: alone, from a base, resumed under another layout, and sampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.checkpoint.base import Base
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.generate.loaded_run import load_run
from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_words
from megavideo.testing.train_cases import Case, Outcome, run_cases

LAYOUTS_ON_TWO = ("tp2-sp-zero1", "pp2-zero0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lora")
    write_dataset(str(root / "latents"), 18)
    return root


@pytest.fixture(scope="module")
def outcomes(root: Path) -> Iterator[dict[str, Outcome]]:
    """A base, adapters beside it in one start, and the same begun alone and gone on with under two layouts."""

    def words(name: str, layout: str, steps: int, **settings: Any) -> list[str]:
        given = {"optim": "constant", "optim__lr": 1e-2, "layout": layout, "train__steps": steps, **settings}
        return micro_words(name=name, output=root / "runs", data__uri=root / "latents", **given)

    adapters = {"lora": "blocks", "lora__rank": 4, "lora__base": root / "runs" / "base"}
    other = {**adapters, "lora__base": root / "runs" / "base2"}
    first = {
        "base": words("base", "zero0", 2),
        "base2": words("base2", "zero0", 2, train__seed=1),
        "whole": words("whole", "zero0", 5, **adapters),
        **{layout: words(layout, "zero1", 3, **adapters) for layout in LAYOUTS_ON_TWO},
        "other base": words(LAYOUTS_ON_TWO[0], "zero1", 5, **other),
        "other rank": words("whole", "zero0", 6, **{**adapters, "lora__rank": 2}),
        "begun": words("begun", "zero3", 1, **adapters, init_from=root / "runs" / "whole"),
        "not adapters": words("wrong", "zero0", 1, **adapters, init_from=root / "runs" / "base"),
        "other model": words("wider", "zero0", 1, **adapters, model__ffn=64),
        "no layer": words("none", "zero0", 1, **{**adapters, "lora__targets": "[blocks.*.mlp]"}),
    }
    second = {f"{layout} again": words(layout, layout, 5, **adapters) for layout in LAYOUTS_ON_TWO}
    found: dict[str, Outcome] = {}
    for processes, cases in ((1, first), (2, second)):
        ranks = run_cases([Case(word) for word in cases.values()], root / f"logs{processes}", processes=processes)
        found |= {name: outcome[0] for name, outcome in zip(cases, ranks, strict=True)}
    yield found


def reader(root: Path, name: str) -> CheckpointReader:
    return CheckpointReader(find_checkpoint(root / "runs" / name))


def test_checkpoints_hold_adapters_alone_and_name_their_base(root: Path, outcomes: dict[str, Outcome]) -> None:
    assert outcomes["whole"].report is not None, outcomes["whole"]
    manifest, base = reader(root, "whole").manifest, Base(root / "runs" / "base")
    assert manifest.base == base.reference
    assert manifest.states == {"weight", "exp_avg", "exp_avg_sq", "ema"}
    assert all(".lora." in name for name in manifest.shapes)
    elements = sum(a * b for a, b in manifest.shapes.values())
    held = sum(fragment.numel for file in manifest.files for fragment in file.fragments)
    assert held == 4 * elements
    assert manifest.size_bytes < base.reader.manifest.size_bytes / 5


def test_adapters_are_trained_and_begin_as_the_base(root: Path, outcomes: dict[str, Outcome]) -> None:
    found = reader(root, "whole")
    up = [found.value("weight", name, shape) for name, shape in found.manifest.shapes.items() if name.endswith(".B")]
    assert all(bool(matrix.any()) for matrix in up)


@pytest.mark.parametrize("layout", LAYOUTS_ON_TWO)
def test_a_run_goes_on_under_another_layout(root: Path, outcomes: dict[str, Outcome], layout: str) -> None:
    report = outcomes[f"{layout} again"].report
    assert report is not None, outcomes[f"{layout} again"]
    assert report["resumed_at"] == 3
    one, other = reader(root, "whole"), reader(root, layout)
    assert one.manifest.shapes == other.manifest.shapes
    for name, shape in one.manifest.shapes.items():
        for state in ("weight", "ema"):
            expected, found = (run.value(state, name, shape) for run in (one, other))
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5), (state, name)


def test_a_run_of_adapters_is_sampled_with_its_base(root: Path, outcomes: dict[str, Outcome]) -> None:
    opened = load_run(root / "runs" / "whole", weights="ema", dtype=torch.float32, device=torch.device("cpu"))
    base, adapters = Base(root / "runs" / "base"), reader(root, "whole")
    scale = opened.config.lora.scale
    for name, parameter in opened.model.named_parameters():
        value, layer = base.value(name, parameter.shape), name.removesuffix(".weight")
        if f"{layer}.lora.A" in adapters.manifest.shapes and name.endswith(".weight"):
            down, up = (
                adapters.value("ema", f"{layer}.lora.{m}", adapters.manifest.shapes[f"{layer}.lora.{m}"]) for m in "AB"
            )
            pairs = zip(up.chunk(len(down) // 4), down.chunk(len(down) // 4), strict=True)
            value = value + scale * torch.cat([b @ a for b, a in pairs])
            assert not torch.equal(parameter, base.value(name, parameter.shape))
        assert torch.allclose(parameter, value, atol=1e-6), name


def test_a_run_begins_with_the_adapters_of_another(root: Path, outcomes: dict[str, Outcome]) -> None:
    assert outcomes["begun"].report is not None, outcomes["begun"]
    name = "blocks.0.ffn.up.lora.B"
    before, after = reader(root, "whole"), reader(root, "begun")
    shape = before.manifest.shapes[name]
    change = after.value("weight", name, shape) - before.value("weight", name, shape)
    assert 0 < float(change.abs().max()) < 1.2e-2  # one update of AdamW at a rate of 1e-2


@pytest.mark.parametrize(
    ("case", "error", "told"),
    [
        ("other base", "CheckpointError", "trained beside"),
        ("other rank", "ConfigError", "lora.rank=2: the run in"),
        ("not adapters", "CheckpointError", "lora.A' is None in the checkpoint"),
        ("other model", "CheckpointError", "made for another model"),
        ("no layer", "ConfigError", "matches none of the model's layers"),
    ],
)
def test_what_does_not_fit_is_refused(outcomes: dict[str, Outcome], case: str, error: str, told: str) -> None:
    assert outcomes[case].error == error, outcomes[case]
    assert told in outcomes[case].message


def test_the_base_is_not_touched(root: Path, outcomes: dict[str, Outcome]) -> None:
    """To the last byte, after every other run: the manifest has the digest of each of its files."""
    base = Base(root / "runs" / "base")
    base.reader.verify()
    manifests = [reader(root, name).manifest.base for name in ("whole", *LAYOUTS_ON_TWO)]
    assert manifests == [base.reference] * len(manifests)
