"""Runs that go on under one layout after another, beside a run that stays in one process."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megavideo.checkpoint.manifest import Manifest
from megavideo.checkpoint.read import CheckpointReader
from megavideo.config.layout import parse_layout
from megavideo.testing.train_cases import Case, Outcome, run_cases
from tests.train.conftest import Place

STATES = ("weight", "exp_avg", "exp_avg_sq", "ema")
LEG = 2  # steps under each layout, at whose end the run is saved
DATA = "flat"  # a dataset that is learnt quickly, so that the losses tell of the weights


@dataclass(frozen=True)
class Route:
    """Layouts that a run goes on under, in turn."""

    layouts: tuple[str, ...]
    settings: Mapping[str, object] = field(default_factory=dict)


def words(place: Place, name: str, layout: str, steps: int, settings: Mapping[str, object]) -> list[str]:
    """Words of a run to a step, saved at the end of each leg."""
    given = {
        "train__packs_per_step": 4, "train__steps": steps, "checkpoint__every": LEG,
        "checkpoint__keep_last": 100, "train__check_inputs_every": 1, "optim__lr": 5e-3,
        # AdamW makes steps of full length of gradients that are rounding only, unless eps is above those
        "optim__eps": 1e-4,
    }  # fmt: skip
    return place.words(name, DATA, layout=layout, **{**given, **settings})


def num_processes(layout: str) -> int:
    """Processes of a layout that names its dp."""
    parsed = parse_layout(layout)
    return parsed.model_size * (parsed.dp or 1)


def run_route(place: Place, name: str, route: Route, logs: Path) -> list[list[Outcome]]:
    """Outcomes by leg and rank. Legs in a row that need as many processes share a start of them."""
    outcomes: list[list[Outcome]] = []
    legs = enumerate(route.layouts, 1)
    for processes, together in itertools.groupby(legs, lambda leg: num_processes(leg[1])):
        cases = [Case(words(place, name, layout, leg * LEG, route.settings)) for leg, layout in together]
        outcomes += run_cases(cases, logs / f"start_{len(outcomes)}", processes=processes)
    return outcomes


@dataclass(frozen=True)
class Pairs:
    """A run begins under one layout for `begun` steps, and goes on under another to `steps`: each of them to each."""

    layouts: tuple[str, ...]
    begun: int
    steps: int

    def name(self, one: str, two: str) -> str:
        """Of the run that begins under `one`."""
        return f"{one}_{two}"

    def words(self, place: Place, name: str, layout: str, steps: int) -> list[str]:
        """Of such a run, which is saved at its end only."""
        return words(place, name, layout, steps, {"checkpoint__every": 1000})


def run_pairs(place: Place, pairs: Pairs, logs: Path) -> dict[str, list[Outcome]]:
    """Outcomes by run and rank. The beginnings are made once, and their run folders copied for each way to go on.

    All ways to one layout share a start of processes, which no other does: groups of engines that are done with
    take time from the others.
    """
    outcomes: dict[str, list[Outcome]] = {}
    for layout in pairs.layouts:
        case = Case(pairs.words(place, f"begins_{layout}", layout, pairs.begun))
        [outcomes[layout]] = run_cases([case], logs / f"begins_{layout}", processes=num_processes(layout))
    for two in pairs.layouts:
        names = [pairs.name(one, two) for one in pairs.layouts]
        for one, name in zip(pairs.layouts, names, strict=True):
            shutil.copytree(place.run(f"begins_{one}"), place.run(name))
        cases = [Case(pairs.words(place, name, two, pairs.steps)) for name in names]
        found = run_cases(cases, logs / f"to_{two}", processes=num_processes(two))
        outcomes.update(zip(names, found, strict=True))
    return outcomes


def furthest_state(reader: CheckpointReader, expected: CheckpointReader, state: str) -> tuple[float, str]:
    """Largest difference of a state in any parameter, over that parameter's largest value; and which it is."""
    mine = reader.whole(state)
    differences = []
    for name, values in expected.whole(state).items():
        largest = max(float(values.abs().max()), torch.finfo(torch.float32).tiny)
        differences.append((float((mine[name] - values).abs().max()) / largest, name))
    return max(differences)


def times_saved(manifest: Manifest) -> dict[tuple[str, str], torch.Tensor]:
    """How often each element of each state of each parameter is in the checkpoint's files."""
    counts: dict[tuple[str, str], torch.Tensor] = {}
    for entry in (entry for file in manifest.files for entry in file.fragments):
        shape = manifest.shapes[entry.name]
        numel = int(torch.tensor(shape).prod())
        count = counts.setdefault((entry.state, entry.name), torch.zeros(numel, dtype=torch.int64))
        count += torch.bincount(entry.shard.whole_positions(shape, entry.start, entry.numel), minlength=numel)
    return counts
