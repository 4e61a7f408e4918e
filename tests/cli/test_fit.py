"""`megavideo fit`: from a table to laws, a page and a model that `train` takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megavideo.cli.main import main
from megavideo.config.find import configs_folder
from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.scaling.points import Points
from tests.scaling.laws import LAWS, budgets

TRAIN = ("run=micro", "data.uri=made")


def write_table(path: Path, points: Points) -> Path:
    rows = np.stack([points.params, points.tokens, points.flops, points.loss], axis=1)
    lines = ["params,tokens,flops,loss", *(",".join(f"{value:.17g}" for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("fit") / "points.csv", budgets(LAWS[1], width=8))


def test_laws_page_and_model(
    table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(configs_folder(), tmp_path / "configs")
    exported = tmp_path / "configs" / "model" / "fitted.yaml"
    words = ["clip_tokens=8192", "model=small", "shape.head_dim=64", "resamples=10", f"export={exported}"]
    assert main(["fit", str(table), "--budget", "1e21", *words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    for law in found["laws"]:
        assert list(law["law"].values()) == pytest.approx(list(LAWS[1].values()), rel=1e-6)
        assert law["optimum"]["flops"] == 1e21 and set(law["intervals"]) > {"E", "alpha", "params"}
    assert found["num_points"] == 35 and len(found["isoflop"]["parabolas"]) == 5 and found["learning_rate"] is None
    page = (table.parent / "points_fit.html").read_text()
    assert page.count("data:image/png") == 4 and "http" not in page and "<h2>Shapes</h2>" in page
    monkeypatch.setenv("MEGAVIDEO_CONFIGS", str(tmp_path / "configs"))
    model = load(TrainRun, "train", [*TRAIN, "model=fitted"]).model
    best = found["recommendation"]["best"]
    assert (model.layers, model.width, model.heads) == (best["layers"], best["width"], best["width"] // 64)
    assert model.text_dim == load(TrainRun, "train", [*TRAIN, "model=small"]).model.text_dim
    assert main(["fit", str(table), *words]) == 2  # a model that is there is not written over
    assert "is there already" in capfd.readouterr().err


def test_text(table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"points={table}", "resamples=0", "law=huber", f"out={tmp_path / 'a.html'}"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("35 points of 1e+18 to 1e+22 FLOPs")
    assert any(line.startswith("Huber, many starts") and "0.34781" in line for line in lines)
    assert lines[-1] == f"page     {tmp_path / 'a.html'}" and "interval" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "points: is required"),
        (["a.csv", "b.csv"], "takes one place"),
        (["none.csv"], "none.csv: cannot be read as a table (No such file"),
        (["TABLE", "columns.loss=los"], "has no column 'los'"),
        (["TABLE", "drop_highest=34"], "1 points are left"),
        (["TABLE", "weights=ema"], "has no effect on a table"),
        (["TABLE", "level=0.5"], "has no effect on a table"),
        (["TABLE", "export=m.yaml"], "needs the video tokens of a clip"),
        (["TABLE", "export=m", "clip_tokens=9"], "take export=m.yaml"),
        (["TABLE", "export=m.yaml", "six_nd=true"], "recommends no model of video"),
        (["TABLE", "clip_tokens=9", "six_nd=true"], "has no effect with six_nd=true"),
        (["TABLE", "shape.aspect=64"], "has no effect without clip_tokens"),
        (["TABLE", "resamples=0", "confidence=0.5"], "has no effect with resamples=0"),
        (["TABLE", "out=/dev/null/page.html", "resamples=0"], "cannot be written"),
        (["FOLDER", "six_nd=true"], "FLOPs of these runs are counted"),
        (["FOLDER"], "neither a run folder nor a folder of them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_message(words: list[str], said: str, table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = {"TABLE": str(table), "FOLDER": str(table.parent)}
    assert main(["fit", *(places.get(word, word) for word in words)]) == 2
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1
