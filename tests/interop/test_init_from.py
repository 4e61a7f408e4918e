"""`train init_from=`: weights of Wan under every layout give the first loss of one process; a run's own go before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.config.schema.import_ import ImportRun
from megavideo.interop.import_run import import_weights
from megavideo.interop.weights import to_wan
from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_config, micro_words
from megavideo.testing.train_cases import Case, Outcome, run_cases
from tests.interop.wan_files import random_state, save, save_original_config

LAYOUTS = ("tp2", "tp2-sp-zero1", "pp2", "dp2-zero3")
CHANGED = {"model__heads": 2}


@dataclasses.dataclass(frozen=True)
class Runs:
    """Folder of the runs, their outcomes by name, and the weights that they began with."""

    root: Path
    outcomes: Mapping[str, list[Outcome]]
    state: Mapping[str, torch.Tensor]

    def loss(self, name: str) -> float:
        """Of the first step."""
        rows = (self.root / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return float(json.loads(rows[0])["loss"])

    def reader(self, name: str) -> CheckpointReader:
        """The newest checkpoint."""
        return CheckpointReader(find_checkpoint(self.root / "runs" / name))


def words(root: Path, name: str, layout: str = "zero0", source: str = "wan", **settings: object) -> list[str]:
    given = {"train__packs_per_step": 4, "train__steps": 1, "optim__lr": 1e-12, "init_from": root / source, **settings}
    return micro_words(name=name, output=root / "runs", data__uri=root / "latents", layout=layout, **given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("begin")
    write_dataset(str(root / "latents"), 18)
    model = micro_config(data__uri="none").model
    state = {name: 0.1 * tensor for name, tensor in random_state(model).items()}
    save(root / "wan" / "wan.safetensors", to_wan(state, model, "wan"))
    save_original_config(root / "wan", model)
    import_weights(ImportRun(src=str(root / "wan"), out=str(root / "imported")))
    alone = {
        "one": words(root, "one"),
        "of_import": words(root, "of_import", source="imported"),
        "of_run": words(root, "of_run", source="runs/one"),
        "anew": words(root, "anew", init_from="null"),
        "changed": words(root, "changed", **CHANGED),
        "changed_import": words(root, "changed_import", source="imported", **CHANGED),
        "nothing": words(root, "nothing", source="nowhere"),
        "goes_on": words(root, "one", source="nowhere", train__steps=2),
    }
    two = {layout: words(root, layout, layout) for layout in LAYOUTS}
    outcomes: dict[str, list[Outcome]] = {}
    for number, cases in ((1, alone), (2, two)):
        found = run_cases([Case(given) for given in cases.values()], root / f"logs_{number}", processes=number)
        outcomes |= dict(zip(cases, found, strict=True))
    return Runs(root, outcomes, state)


@pytest.mark.parametrize("name", [*LAYOUTS, "of_import", "of_run"])
def test_the_first_loss_is_that_of_one_process(runs: Runs, name: str) -> None:
    assert [(o.error, o.message) for o in (*runs.outcomes["one"], *runs.outcomes[name])] == [(None, "")] * (
        1 + len(runs.outcomes[name])
    )
    print(f"{name}: {runs.loss(name):.7f}, one process {runs.loss('one'):.7f}, anew {runs.loss('anew'):.7f}")
    assert runs.loss(name) == pytest.approx(runs.loss("one"), rel=1e-5)
    assert runs.loss("anew") != pytest.approx(runs.loss("one"), rel=1e-2)


@pytest.mark.parametrize("name", [*LAYOUTS, "of_import", "of_run"])
def test_weights_and_average_begin_there(runs: Runs, name: str) -> None:
    """After a step whose rate is next to nothing."""
    for kind in ("weight", "ema"):
        whole = runs.reader(name).whole(kind)
        assert whole.keys() == runs.state.keys()
        assert all(torch.allclose(whole[n], tensor, atol=1e-7) for n, tensor in runs.state.items())
    assert runs.reader(name).manifest.optimizer_steps == 1


@pytest.mark.parametrize("name", ["changed", "changed_import"])
def test_another_setting_of_the_model_is_named(runs: Runs, name: str) -> None:
    (outcome,) = runs.outcomes[name]
    assert outcome.error == "CheckpointError"
    assert "model.heads=2: the weights in " in outcome.message and "Remedy: write model.heads=4" in outcome.message


def test_a_source_that_is_not_there_is_named(runs: Runs) -> None:
    (outcome,) = runs.outcomes["nothing"]
    assert outcome.error == "CheckpointError" and "nowhere: no such file or folder" in outcome.message


def test_the_run_s_own_checkpoint_goes_before(runs: Runs) -> None:
    """The second start does not look at init_from, which has gone by then."""
    (outcome,) = runs.outcomes["goes_on"]
    assert outcome.report is not None and outcome.report["resumed_at"] == 1 and outcome.report["steps"] == 2
