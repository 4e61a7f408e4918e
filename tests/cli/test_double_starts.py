"""Two starts on one output at the same moment: one is told who is at work, or both do the same, and nothing is lost.

On a machine so busy that one has ended before the other looks, both end with 0, as if one came after the other.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavideo.cli.main import main
from megavideo.cli.verb_table import verb_names
from megavideo.cli.verbs import checkpoint, lora
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.storage.owners import Claim, owning
from megavideo.errors import RETRY_STATUS, CheckpointError
from megavideo.testing.dataset import write_dataset
from megavideo.testing.launch import Finished
from megavideo.testing.settings import micro_words
from tests.cli.double_starts import ENCODE, MAKERS
from tests.cli.double_starts_of_runs import LOOKS, content, saved_run
from tests.cli.double_starts_of_runs import MAKERS as MAKERS_OF_RUNS
from tests.encoders.encode_cases import write_film, write_list
from tests.start_together import start_together


def test_two_starts_are_tried_of_every_verb() -> None:
    """A verb that is new gets a case, whether it writes or only looks; so does each action of those that have some."""
    words = {" ".join(name.split()[:count]) for name in (*MAKERS, *MAKERS_OF_RUNS, *LOOKS) for count in (1, 2)}
    actions = {f"checkpoint {name}" for name in checkpoint._ACTIONS} | {f"lora {name}" for name in lora._ACTIONS}
    assert [name for name in (*verb_names(), *sorted(actions)) if name not in words] == []


@pytest.mark.parametrize("name", [name for name in LOOKS if name.startswith(("status", "checkpoint", "doctor of"))])
def test_who_only_looks_writes_nothing(
    name: str, looked_at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(looked_at)
    before = content(looked_at)
    assert main(LOOKS[name](looked_at / "runs" / "micro", looked_at / "latents")) == 0
    assert capsys.readouterr().out and content(looked_at) == before


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and a dataset."""
    root = tmp_path_factory.mktemp("looked_at")
    saved_run(root)
    write_dataset(str(root / "latents"), 8)
    return root


def assert_told(ended: list[Finished], verb: str) -> list[int]:
    """One at least got through, and whoever did not was told by whom; the statuses."""
    statuses = [finished.status for finished in ended]
    told = [finished.err for finished in ended]
    assert 0 in statuses and set(statuses) <= {0, RETRY_STATUS}, told
    refused = [finished.err for finished in ended if finished.status == RETRY_STATUS]
    assert all(f"in use by `megavideo {verb}`, process" in text and "Remedy: wait" in text for text in refused), told
    return statuses


def test_a_run_folder_in_use_is_told_of_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(str(tmp_path / "latents"), 6)
    words = ["train", *micro_words(name="taken", output=tmp_path, data__uri=tmp_path / "latents")]
    with owning(tmp_path / "taken", Claim("train", "name= another run")):
        assert main(words) == RETRY_STATUS
        assert {path.name for path in (tmp_path / "taken").iterdir()} == {".owner"}
    told = capsys.readouterr().err
    assert "taken: in use by `megavideo train`, process" in told and "Remedy: wait until it has ended" in told


def test_an_import_at_work_is_told_of_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", f"src={tmp_path / 'gone'}", f"out={tmp_path / 'run'}"]
    with owning(tmp_path / "run", Claim("import", "out= another folder", is_file=True)):
        assert main(words) == RETRY_STATUS
    assert "run: in use by `megavideo import`, process" in capsys.readouterr().err
    assert main(words) == CheckpointError.exit_status
    assert list(tmp_path.iterdir()) == []


def test_two_trainings_at_once_tell_each_step_once(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "latents"), 12)
    words = micro_words(name="clash", output=tmp_path, data__uri=tmp_path / "latents", train__steps=12)
    commands = [["train", *words, f"optim.lr={rate}"] for rate in ("1e-3", "1e-5")]
    ended = start_together(commands, tmp_path / "logs")
    assert_told(ended, "train")
    rows = [json.loads(line) for line in (tmp_path / "clash" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert not list((tmp_path / "clash").glob("config.*.yaml")) and not (tmp_path / "clash" / ".owner").exists()


def test_two_encodes_of_different_clips_leave_none_out_in_silence(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film")
    lists = [write_list(tmp_path / "many", film, range(24)), write_list(tmp_path / "few", film, range(30, 32))]
    commands = [["encode", f"src={src}", f"out={tmp_path / 'data'}", *ENCODE] for src in lists]
    statuses = assert_told(start_together(commands, tmp_path / "logs"), "encode")
    for number, status in enumerate(statuses):
        if status == RETRY_STATUS:
            assert open_dataset(str(tmp_path / "data")).info.num_samples == (24, 2)[1 - number]
            assert main(commands[number]) == 0  # the same command again goes on
    dataset = open_dataset(str(tmp_path / "data"))
    assert (dataset.info.num_samples, dataset.info.dropped) == (26, ())


def test_two_ingests_of_different_folders_are_not_mixed(tmp_path: Path) -> None:
    for name, count in (("many", 3), ("few", 1)):
        for number in range(count):
            film = write_film(tmp_path / name / str(number))
            film.with_suffix(".txt").write_text(f"film {number} of {name}")
    commands = [
        ["ingest", f"src={tmp_path / name}", f"out={tmp_path / 'clips'}", "filters.duplicate_bits=null"]
        for name in ("many", "few")
    ]
    statuses = assert_told(start_together(commands, tmp_path / "logs"), "ingest")
    rows = [json.loads(line) for line in (tmp_path / "clips" / "clips.jsonl").read_text().splitlines()]
    done = {row["caption"].rpartition(" ")[2] for row in rows}
    assert done == {"many" if statuses == [0, RETRY_STATUS] else "few"} or statuses == [0, 0] and len(done) == 1
