"""Training runs shared by the tests of this folder: one start of processes for each number of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_words
from megavideo.testing.train_cases import Case, Failure, NanGradient, OtherSeed, OtherWords, Outcome, run_cases
from megavideo.types import Grid

STEPS = 24
BAD_SAMPLE = 3
# one of two ranks alone meets a gradient that is not a number, in a parameter that it holds under each of these
NAN_ON_ONE = ("tp2-zero0", "tp2-sp-zero0", "tp2-sp-zero1", "pp2-zero0", "pp2-zero1", "cp2-ring-zero0", "dp2-zero3")
SPLIT_ON_TWO = ("tp2", "tp2-sp", "cp2-ring", "pp2", "dp2-zero1")

# runs of the default tests: one of each kind
QUICK_ON_TWO = frozenset((
    "two_zero1", "moved", "spoiled_zero1", "spoiled_tp2-sp-zero1", "spoiled_pp2-zero1", "spoiled_cp2-ring-zero3",
    "split_tp2-sp", "split_pp2", "split_dp2-zero1", "nan_tp2-sp-zero1", "nan_pp2-zero0", "nan_dp2-zero3",
    "other_noise_later", "other_samples", "hopeless_zero1", "torn", "file_fails", "manifest_fails",
))  # fmt: skip
QUICK_ON_ONE = frozenset(("one_zero0", "moved", "learning", "ddpm_v", "conditions", "no_average"))
QUICK_ON_FOUR = frozenset(("four_zero1", "other_noise_of_three"))


@dataclass(frozen=True)
class Place:
    """Folders of the tests: datasets, run folders and logs."""

    root: Path

    @property
    def latents(self) -> Path:
        """A dataset without faults."""
        return self.root / "latents"

    def words(self, name: str, data: str = "latents", **settings: Any) -> list[str]:
        """Words of a run called `name` on one of the datasets."""
        return micro_words(name=name, output=self.root / "runs", data__uri=self.root / data, **settings)

    def run(self, name: str) -> Path:
        """Its run folder."""
        return self.root / "runs" / name

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Its metrics."""
        return [json.loads(line) for line in (self.run(name) / "metrics.jsonl").read_text().splitlines()]

    def faults(self, name: str) -> list[dict[str, Any]]:
        """Its skipped steps."""
        return [json.loads(line) for line in (self.run(name) / "faults.jsonl").read_text().splitlines()]

    def losses(self, name: str) -> list[float]:
        """Loss of each step, NaN where it was not finite; each step is there once and in order."""
        rows = self.rows(name)
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        return [math.nan if row["loss"] is None else row["loss"] for row in rows]

    def reader(self, name: str, step: int | None = None) -> CheckpointReader:
        """A checkpoint of it: the newest, or that of a step."""
        checkpoints = self.run(name) / "checkpoints"
        return CheckpointReader(find_checkpoint(checkpoints) if step is None else checkpoints / f"step_{step:08d}")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Folders with the datasets written."""
    place = Place(tmp_path_factory.mktemp("train"))
    write_dataset(str(place.latents), 18)
    write_dataset(str(place.root / "spoiled"), 8, grids=(Grid(2, 4, 4), Grid(1, 6, 4)), bad={BAD_SAMPLE: math.inf})
    write_dataset(str(place.root / "hopeless"), 4, grids=(Grid(2, 4, 4),), bad=dict.fromkeys(range(4), math.nan))
    write_dataset(str(place.root / "two"), 2, grids=(Grid(2, 4, 4), Grid(1, 8, 4)), flat=True)
    write_dataset(str(place.root / "torn"), 18, shard_bytes=2048)
    shard = sorted((place.root / "torn").glob("*.mds"))[2]
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    return place


@dataclass
class Runs(Mapping[str, list[Outcome]]):
    """Outcomes by rank, by the name of a run: those of `quick` share a start of processes, made when one is asked for.

    Each other is started by itself, as only slow tests ask for it.
    """

    cases: Mapping[str, Case]
    quick: frozenset[str]
    folder: Path
    processes: int
    _found: dict[str, list[Outcome]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> list[Outcome]:
        if name not in self._found:
            names = [n for n in self.cases if _base(n) in self.quick] if _base(name) in self.quick else [name]
            cases = [self.cases[n] for n in names]
            logs = self.folder / str(len(self._found))
            self._found |= zip(names, run_cases(cases, logs, processes=self.processes), strict=True)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)


def _base(name: str) -> str:
    return name.removesuffix(" again")


def slow_but(names: Iterable[str], quick: Iterable[str]) -> list[Any]:
    """Parameters of a test: those of `quick` as they are, the others for slow runs."""
    quick = set(quick)
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def parity_words(place: Place, name: str, layout: str, **settings: Any) -> list[str]:
    """One run that every layout must do alike: four packs a step."""
    given = {"train__packs_per_step": 4, "train__steps": STEPS, "checkpoint__every": 7, **settings}
    return place.words(name, layout=layout, **given)


def _spoiled(place: Place, name: str, layout: str, **settings: Any) -> list[str]:
    kept = {"checkpoint__every": 1, "checkpoint__keep_last": 100, "train__steps": 9}
    small = {"data__tokens_per_pack": 16, "data__max_segments": 2, **kept}
    return place.words(name, "spoiled", layout=layout, **{**small, **settings})


def _hopeless(place: Place, name: str, layout: str) -> list[str]:
    return place.words(name, "hopeless", layout=layout, data__tokens_per_pack=16, guard__max_skipped=3)


def _spoiled_short(place: Place, name: str, layout: str, **settings: Any) -> list[str]:
    return _spoiled(place, name, layout, train__steps=4, **settings)


def _split(place: Place, name: str, layout: str) -> list[str]:
    """Nothing but faults, in packs of three samples, the middle one of which two ranks share."""
    small = {"data__tokens_per_pack": 24, "data__max_segments": 3, "guard__max_skipped": 2}
    return place.words(name, "hopeless", layout=layout, **small)


def _nan_on_one(place: Place, name: str, layout: str) -> Case:
    """The second of three steps, of two packs each, goes wrong on rank 1, in its last pack."""
    micro_steps = 1 if layout.startswith("dp2") else 2
    words = place.words(name, layout=layout, train__steps=3, checkpoint__every=1, checkpoint__keep_last=9)
    return Case(words, NanGradient("blocks.1.ffn.down.weight", 1, 2 * micro_steps))


def _other_noise(place: Place, name: str, layout: str, rank: int, call: int = 1) -> Case:
    """One rank noises by another seed from its `call`th pack on; inputs are compared every third step."""
    fault = OtherSeed("megavideo.train.packs.feed.noise_pack", rank, call)
    return Case(place.words(name, layout=layout, train__check_inputs_every=3), fault)


def _failing(place: Place, name: str, where: str, rank: int) -> list[Case]:
    """A run whose second save fails on one rank, and the same command again."""
    words = place.words(name, layout="dp2-zero1", checkpoint__every=2)
    return [Case(words, Failure(f"megavideo.checkpoint.{where}", rank, 2)), Case(words)]


@pytest.fixture(scope="session")
def on_two(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs on two processes; the second start of a run has ` again` after its name."""
    cases = {
        "two_zero1": Case(parity_words(place, "two_zero1", "dp2-zero1")),
        "two_zero0": Case(parity_words(place, "two_zero0", "dp2-zero0")),
        "two_bf16": Case(parity_words(place, "two_bf16", "dp2-zero1", train__precision="bf16")),
        "moved": Case(parity_words(place, "moved", "dp2-zero1", train__steps=10)),
        "spoiled_zero0": Case(_spoiled(place, "spoiled_zero0", "dp2-zero0")),
        "spoiled_zero1": Case(_spoiled(place, "spoiled_zero1", "dp2-zero1")),
        "unclipped_zero0": Case(_spoiled(place, "unclipped_zero0", "dp2-zero0", optim__clip=None)),
        "unclipped_zero1": Case(_spoiled(place, "unclipped_zero1", "dp2-zero1", optim__clip=None)),
        "spoiled_bf16": Case(_spoiled(place, "spoiled_bf16", "dp2-zero1", train__precision="bf16")),
        **{
            f"spoiled_{layout}": Case(_spoiled_short(place, f"spoiled_{layout}", layout))
            for layout in ("tp2-sp-zero0", "tp2-sp-zero1", "pp2-zero0", "pp2-zero1", "cp2-ring-zero0", "cp2-ring-zero3")
        },
        "spoiled_tp_bf16": Case(_spoiled_short(place, "spoiled_tp_bf16", "tp2-sp-zero1", train__precision="bf16")),
        "spoiled_pp_bf16": Case(_spoiled_short(place, "spoiled_pp_bf16", "pp2-zero1", train__precision="bf16")),
        **{f"split_{layout}": Case(_split(place, f"split_{layout}", layout)) for layout in SPLIT_ON_TWO},
        **{f"nan_{layout}": _nan_on_one(place, f"nan_{layout}", layout) for layout in NAN_ON_ONE},
        "other_noise": _other_noise(place, "other_noise", "tp2", 1),
        # two packs a step
        "other_noise_later": _other_noise(place, "other_noise_later", "tp2", 1, call=5),
        "other_samples": Case(place.words("other_samples", layout="pp2"), OtherWords(["train.seed=1"], 1)),
        "hopeless_zero0": Case(_hopeless(place, "hopeless_zero0", "dp2-zero0")),
        "hopeless_zero1": Case(_hopeless(place, "hopeless_zero1", "dp2-zero1")),
        "torn": Case(place.words("torn", "torn", layout="dp2-zero1")),
    }
    for name, where, rank in (
        ("file", "folder_place.write_tensors", 1),
        ("folder", "folder_place.FolderPlace.begin", 0),
        ("manifest", "save_job.manifest_of", 0),
    ):
        cases[f"{name}_fails"], cases[f"{name}_fails again"] = _failing(place, f"{name}_fails", where, rank)
    return Runs(cases, QUICK_ON_TWO, tmp_path_factory.mktemp("on_two"), 2)


@pytest.fixture(scope="session")
def on_one(place: Place, on_two: Runs, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs on one process; `moved` goes on from what two processes left."""
    assert [outcome.error for outcome in on_two["moved"]] == [None, None]
    learning = {"train__steps": 60, "optim__lr": 4e-3, "data__tokens_per_pack": 16, "train__packs_per_step": 1}
    cases = {
        "one_zero0": Case(parity_words(place, "one_zero0", "zero0")),
        "one_zero1": Case(parity_words(place, "one_zero1", "zero1")),
        "one_bf16": Case(parity_words(place, "one_bf16", "zero1", train__precision="bf16")),
        "one_recomputed": Case(parity_words(place, "one_recomputed", "zero1", train__recompute__kind="full")),
        "moved": Case(parity_words(place, "moved", "zero0")),
        "learning": Case(place.words("learning", "two", **learning)),
        "ddpm": Case(place.words("ddpm", "two", diffusion="ddpm", **learning)),
        "ddpm_v": Case(place.words("ddpm_v", diffusion="ddpm_v", model__modulation="adaln_zero")),
        "conditions": Case(place.words("conditions", diffusion="flow_conditions", model__fps_conditioning="true")),
        "no_average": Case(place.words("no_average", optim__ema_decay=None, optim__clip=None)),
    }
    return Runs(cases, QUICK_ON_ONE, tmp_path_factory.mktemp("on_one"), 1)


@pytest.fixture(scope="session")
def on_four(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs on four processes."""
    cases = {
        "four_zero0": Case(parity_words(place, "four_zero0", "dp4-zero0")),
        "four_zero1": Case(parity_words(place, "four_zero1", "dp4-zero1")),
        "spoiled_four": Case(_spoiled_short(place, "spoiled_four", "tp2-sp-pp2-zero1")),
        "other_noise_four": _other_noise(place, "other_noise_four", "tp2-dp2", 3),
        "other_noise_of_three": _other_noise(place, "other_noise_of_three", "tp2-sp-cp2-ring", 0),
    }
    return Runs(cases, QUICK_ON_FOUR, tmp_path_factory.mktemp("on_four"), 4)
