"""`megavideo caption` as a user meets it: one JSON object, or one message that names the fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavideo.cli.main import main
from megavideo.errors import RETRY_STATUS
from tests.data.clip_files import moving_square, write_clip
from tests.encoders.chat_server import KEY, Reply, chat_server, completion


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "a.mp4", moving_square(5, 32, 32))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHAT_KEY", KEY)
    return tmp_path


def test_report_and_help(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with chat_server(lambda number, content: completion("A square moves.")) as server:
        words = [f"captioner.endpoint.url={server.url}", "captioner.endpoint.model=m"]
        words += ["captioner.endpoint.key_variable=CHAT_KEY", "--json", "-v"]
        assert main(["caption", "src=clips", "out=out", *words]) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert (report["num_clips"], report["num_asked"], report["failures"]) == (1, 2, [])
    assert report["prompts"][0]["mean_words"] == 3.0
    written = "".join(path.read_text() for path in (folder / "out").glob("*.json*"))
    assert KEY not in out + err + written
    row = json.loads((folder / "out" / "captions.jsonl").read_text())
    assert row["captions"] == [{"text": "A square moves.", "weight": 1.0, "source": "vlm"}]
    assert main(["caption", "--help"]) == 0
    assert "captioner.endpoint.key_variable" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("src=nowhere captioner.path=empty", "captioner.path='empty': its config.json cannot be read"),
        ("src=clips captioner.path=nowhere", "no such folder"),
        ("src=nowhere URL", "nowhere: no such file or folder"),
        ("src=empty URL", "holds no video"),
        ("src=clips URL captions=nowhere.jsonl", "nowhere.jsonl"),
        ("src=clips URL shard=3/2", "shard"),
        ("src=clips URL captioner.endpoint.key_variable=UNSET", "captioner.endpoint.key_variable: names no"),
        ("src=clips URL", "captioner.endpoint.url"),
        ("src=clips URL captioner.framez=3", "did you mean captioner.frames?"),
    ],
)
def test_one_message(words: str, part: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with chat_server(lambda number, content: Reply(404, "no such model")) as server:
        place = f"captioner.endpoint.url={server.url} captioner.endpoint.model=m"
        assert main(["caption", "out=out", *words.replace("URL", place).split()]) == 2
    err = capfd.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and part in errors[0] and "Remedy: " in errors[0], err
    assert "Traceback" not in err


def test_a_server_out_of_reach_is_a_reason_to_start_again(folder: Path) -> None:
    with chat_server(lambda number, content: Reply(503, "starting")) as server:
        words = [f"captioner.endpoint.url={server.url}", "captioner.endpoint.model=m"]
        words += ["captioner.endpoint.attempts=1", "captioner.endpoint.backoff_seconds=0.01"]
        assert main(["caption", "src=clips", "out=out", *words]) == RETRY_STATUS
