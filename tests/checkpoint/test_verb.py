"""`megavideo checkpoint`: what it lists, finds damaged, shows and writes anew, here and in a store."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.checkpoint.survey import Looked, Shelf, survey
from megavideo.cli.output import to_json
from megavideo.cli.verbs.checkpoint import VERB
from megavideo.config.load import load
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.config.schema.checkpoint_verb import CheckpointVerbRun
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.open import open_storage
from megavideo.errors import CheckpointError, ConfigError
from tests.checkpoint.states import SHAPES, check, fragments, whole

YAML = "name: x\ncheckpoint:\n  keep_last: 1\n  keep_best: 1\n  from_another_version: 3\n"
FILE = "fragments_00000.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of three checkpoints, two of them by stages."""
    settings = CheckpointConfig(keep_last=5)
    with Checkpointer(settings, tmp_path / "run" / "checkpoints", SaveGroup(0, 1, "one")) as checkpointer:
        for step, loss in ((1, 0.5), (2, 0.3), (3, None)):
            progress = {"stage": "low" if step < 3 else "high", "samples": 8 * step}
            header = Header(step, "tp2-sp-zero1", YAML, progress, loss, step == 1)
            checkpointer.save(header, fragments(step))
        checkpointer.wait(required=True)
    return tmp_path / "run"


def call(action: str, place: Path | str, *words: str) -> Any:
    config = load(CheckpointVerbRun, VERB.primary, words)
    assert VERB.words is not None
    return VERB.run(config, {VERB.words.metavar: (action, str(place))})


def told(report: Any) -> tuple[str, dict[str, Any], bool]:
    """What a user reads, the JSON, and whether the exit status says that something is wrong."""
    assert VERB.failed is not None
    return VERB.describe(report), json.loads(to_json(dataclasses.asdict(report))), VERB.failed(report)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def test_ls_tells_step_stage_layout_state_and_why_each_is_kept(run: Path) -> None:
    text, found, failed = told(call("ls", run))
    rows = found["checkpoints"]
    assert [(row["step"], row["stage"], row["kept_because"]) for row in rows] == [
        (1, "low", ["stage end"]), (2, "low", ["best"]), (3, "high", ["last"])
    ]  # fmt: skip
    assert all(row["state"] == "unverified" and row["layout"] == "tp2-sp-zero1" for row in rows)
    size = (run / "checkpoints" / "step_00000003" / FILE).stat().st_size
    assert all(row["size_bytes"] == size and 0 <= row["age_seconds"] < 600 for row in rows)
    assert not failed
    assert "step_00000002" in text and "best" in text and "2.4 MB" in text
    assert {row.state for row in call("ls", run / "checkpoints", "hashes=true").checkpoints} == {"good"}


def test_verify_names_the_file_that_is_damaged(run: Path) -> None:
    text, _, failed = told(call("verify", run))
    assert not failed and text.count(" good ") == 3
    flip(run / "checkpoints" / "step_00000002" / FILE)
    assert not told(call("ls", run))[2]  # its size is right
    text, found, failed = told(call("verify", run))
    assert failed
    assert [row["state"] for row in found["checkpoints"]] == ["good", "damaged", "good"]
    assert f"FAULT: {run}/checkpoints/step_00000002/{FILE}: damaged: its xxh64 is" in text
    assert not told(call("verify", run / "checkpoints" / "step_00000003"))[2]
    (run / "checkpoints" / "step_00000003" / FILE).unlink()
    (run / "checkpoints" / "step_00000001" / "manifest.json").write_text("{")
    _, found, failed = told(call("ls", run))
    assert failed and [row["state"] for row in found["checkpoints"]] == ["damaged", "unverified", "damaged"]
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        call("verify", run / "checkpoints" / "step_00000009")


def test_show_tells_progress_settings_and_norms(run: Path) -> None:
    text, found, failed = told(call("show", run))
    assert not failed
    assert (found["step"], found["progress"]) == (3, {"stage": "high", "samples": 24})
    assert found["config"]["checkpoint"]["keep_best"] == 1
    rows = {row["name"]: row for row in found["parameters"]}
    assert {name: tuple(row["shape"]) for name, row in rows.items()} == SHAPES
    for state in ("weight", "ema"):
        expected = {name: float(whole(state, name, 3).double().norm()) for name in SHAPES}
        assert {name: row["norms"][state] for name, row in rows.items()} == pytest.approx(expected)
        assert found["norms"][state] == pytest.approx(math.sqrt(sum(norm**2 for norm in expected.values())))
    assert found["num_parameters"] == sum(math.prod(shape) for shape in SHAPES.values())
    assert "samples=24" in text and "400 x 500" in text
    assert call("show", run / "checkpoints" / "step_00000001").step == 1


@pytest.mark.parametrize("ranks", [1, 5])
def test_reshard_changes_the_files_alone(run: Path, tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "moved"
    _, found, _ = told(call("reshard", run, f"out={out}", f"ranks={ranks}"))
    assert (found["num_files"], found["place"]) == (ranks, str(out / "step_00000003"))
    assert check(out / "step_00000003") == 3
    sizes = [path.stat().st_size for path in (out / "step_00000003").glob("*.safetensors")]
    assert max(sizes) < 1.05 * min(sizes)
    assert call("show", out).progress == {"stage": "high", "samples": 24}
    assert [path.name for path in out.iterdir()] == ["step_00000003"]
    again = tmp_path / "again"
    call("reshard", out, f"out={again}", "ranks=2")
    assert check(again / "step_00000003") == 3
    with pytest.raises(CheckpointError, match="is there already"):
        call("reshard", run, f"out={out}", f"ranks={ranks}")


def test_a_damaged_one_is_not_resharded(run: Path, tmp_path: Path) -> None:
    flip(run / "checkpoints" / "step_00000003" / FILE)
    with pytest.raises(CheckpointError, match="damaged"):
        call("reshard", run, f"out={tmp_path / 'moved'}", "ranks=2")
    assert not list(tmp_path.glob("moved/*"))


def test_checkpoints_in_a_store(run: Path, s3_bucket: str, tmp_path: Path) -> None:
    uri = f"{s3_bucket}/runs/x"
    storage = open_storage(uri)
    for path in sorted((run / "checkpoints").rglob("*.*")):
        storage.upload(path, path.relative_to(run / "checkpoints").as_posix())
    _, found, failed = told(call("verify", uri))
    assert not failed and [row["state"] for row in found["checkpoints"]] == ["good"] * 3
    assert found["checkpoints"][0]["age_seconds"] is None
    assert call("show", uri).step == 3 and call("show", f"{uri}/step_00000002").step == 2
    shutil.copy(run / "checkpoints" / "step_00000002" / FILE, tmp_path / FILE)
    flip(tmp_path / FILE)
    storage.upload(tmp_path / FILE, f"step_00000002/{FILE}")
    storage.delete(f"step_00000001/{FILE}")
    text, _, failed = told(call("verify", uri))
    assert failed and f"FAULT: {uri}/step_00000002/{FILE}: damaged: its xxh64" in text
    _, found, failed = told(call("ls", uri))
    assert failed and [row["state"] for row in found["checkpoints"]] == ["damaged", "unverified", "unverified"]


@pytest.mark.parametrize("moment", ["manifest", "age_seconds", "fault"])
@pytest.mark.parametrize("in_store", [False, True])
def test_one_that_is_removed_while_it_is_looked_at_is_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, in_store: bool
) -> None:
    shelf = Shelf(run / "checkpoints")
    if in_store:
        shutil.copytree(run / "checkpoints", tmp_path / "store")
        shelf = Shelf(LocalStorage(tmp_path / "store"))
    looked_at = shelf.place if moment == "manifest" else shelf
    look = getattr(looked_at, moment)

    def removed_before(name: str, *given: Any, **more: Any) -> Any:
        if name == "step_00000001" and name in shelf.names():
            shelf.place.remove(name)
        return look(name, *given, **more)

    monkeypatch.setattr(looked_at, moment, removed_before)
    found = survey(shelf, Looked())
    assert [(row.step, row.state) for row in found.checkpoints] == [(2, "unverified"), (3, "unverified")]
    assert found.faults == ()


@pytest.mark.parametrize(
    ("words", "settings", "field"),
    [
        (("look", "x"), (), "ACTION PLACE"),
        (("ls",), (), "ACTION PLACE"),
        (("ls", "x"), ("out=y",), "out"),
        (("show", "x"), ("ranks=2",), "ranks"),
        (("verify", "x"), ("hashes=true",), "hashes"),
        (("ls", "x"), ("values=false",), "values"),
        (("reshard", "x"), ("out=y",), "ranks"),
        (("reshard", "x"), ("ranks=2",), "out"),
    ],
)
def test_words_and_settings_that_do_not_belong_together(
    words: tuple[str, ...], settings: tuple[str, ...], field: str
) -> None:
    assert VERB.words is not None
    with pytest.raises(ConfigError) as caught:
        VERB.run(load(CheckpointVerbRun, VERB.primary, settings), {VERB.words.metavar: words})
    assert caught.value.field == field
