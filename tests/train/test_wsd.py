"""One stable run gives several budgets, each exact; and a finished run is a point for scaling laws."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megavideo.checkpoint.contents import contents_of
from megavideo.checkpoint.read import find_checkpoint
from megavideo.observe.metrics import read_metrics
from megavideo.scaling.runs import read_run
from megavideo.testing.dataset import write_dataset
from megavideo.testing.launch import run
from megavideo.testing.settings import micro_words

DECAY, STABLE, LONG = 2, 4, 8


def train(folder: Path, name: str, steps: int) -> list[dict[str, object]]:
    words = micro_words(
        name=name, output=folder / "runs", data__uri=folder / "latents", train__steps=steps, optim__schedule="wsd",
        optim__min_lr_ratio=0.1, optim__decay_steps=DECAY, optim__warmup_steps=1, checkpoint__every=STABLE,
        validation__every=2, validation__clips=2,
    )  # fmt: skip
    outcome = run("megavideo", ["train", *words], folder / "logs")
    assert outcome.status == 0, outcome.err
    return read_metrics(folder / "runs" / name / "metrics.jsonl")


@pytest.mark.slow
def test_a_run_goes_on_from_its_stable_part_to_another_length(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "latents"), 18)
    short = train(tmp_path, "short", STABLE + DECAY)
    runs = tmp_path / "runs"
    shutil.copytree(runs / "short", runs / "branch")
    shutil.rmtree(runs / "branch" / "checkpoints" / f"step_{STABLE + DECAY:08d}")
    branch, straight = train(tmp_path, "branch", LONG), train(tmp_path, "straight", LONG)
    for name in ("loss", "learning_rate", "grad_norm", "tokens", "flops"):
        assert [row[name] for row in branch] == [row[name] for row in straight], name
        assert [row[name] for row in short[:STABLE]] == [row[name] for row in straight[:STABLE]], name
    assert [row["learning_rate"] for row in short[STABLE:]] != [row["learning_rate"] for row in straight[STABLE:6]]
    point = read_run(runs / "straight", "raw", None)
    assert point is not None
    assert point.tokens == sum(int(str(row["tokens"])) for row in straight) > 0 and point.flops > 6 * 1e5 * point.tokens
    found = contents_of(find_checkpoint(runs / "straight" / "checkpoints"))
    assert point.params == found.num_parameters
