"""`caption` from clips on disk to a file that ingest reads: real decoding, a tiny model, a real HTTP server."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megavideo.config.load import load
from megavideo.config.schema.captions import CaptionRun
from megavideo.config.schema.prepare import IngestRun
from megavideo.config.texts import Share
from megavideo.data.clips.captions import WeightedCaption, read_caption_table
from megavideo.data.ingest import ingest, read_clip_list
from megavideo.encoders.captioner.answer_log import AnswerLog
from megavideo.encoders.captioner.clips import find_clips, frame_numbers, view_of
from megavideo.encoders.captioner.result import weighted
from megavideo.encoders.captioner.run import caption
from megavideo.errors import ConfigError, DataError, OutputInUse
from megavideo.observe.owner import owners_of
from tests.data.clip_files import moving_square, write_captions, write_clip
from tests.encoders.chat_server import ChatServer, Reply, chat_server, completion
from tests.encoders.tiny_captioners import make_llava

COLOURS = {"a": (220, 40, 30), "b": (30, 200, 40), "c": (40, 60, 220)}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "a.mp4", moving_square(20, 48, 64, COLOURS["a"]))
    write_clip(folder / "sub" / "b.mp4", moving_square(9, 32, 32, COLOURS["b"]))
    Image.fromarray(moving_square(1, 32, 48, COLOURS["c"])[0]).save(folder / "c.png")
    (folder / "bad.mp4").write_bytes((folder / "a.mp4").read_bytes()[:300])
    write_captions(folder, {"a.mp4": "a red square"})
    return folder


def settings(clips: Path, *words: str, kind: str = "vlm", out: str = "out") -> CaptionRun:
    given = [f"src={clips}", f"out={clips.parent / out}", f"captioner={kind}", *words]
    return load(CaptionRun, "caption", given)


def rows(cfg: CaptionRun) -> dict[str, list[dict[str, Any]]]:
    lines = (Path(cfg.out) / "captions.jsonl").read_text().splitlines()
    return {row["file"]: row["captions"] for row in map(json.loads, lines)}


def at(server: ChatServer, *words: str, model: str = "tiny") -> list[str]:
    endpoint = [f"captioner.endpoint.url={server.url}", f"captioner.endpoint.model={model}"]
    return [*endpoint, "captioner.endpoint.attempts=2", "captioner.endpoint.backoff_seconds=0.01", *words]


def echo(number: int, content: dict[str, Any]) -> Reply:
    """The prompt's last line and how many frames came with it."""
    said = content["messages"][0]["content"]
    if isinstance(said, str):
        return completion(f"longer: {said.splitlines()[-1]}")
    return completion(f"{len(said) - 1} frames. {said[-1]['text'][:30]}")


PROMPTS = "captioner.prompts=[long,short]"


def test_a_local_model_describes_raw_clips(clips: Path, tmp_path: Path) -> None:
    model = make_llava(tmp_path / "llava")
    known = "captioner.prompts=[Describe this video,Say it at length]"
    words = (
        f"captioner.path={model}",
        "captioner.frames=4",
        "captioner.batch=2",
        "captioner.max_new_tokens=10",
        known,
    )
    cfg = settings(clips, *words, "given_weight=0.5")
    report = caption(cfg)
    assert (report.num_clips, report.num_captioned, report.num_written) == (3, 3, 3)
    assert (report.num_asked, report.num_kept) == (6, 0)
    assert [failure.file for failure in report.failures] == ["bad.mp4"]
    found = rows(cfg)
    assert [(c["weight"], c["source"]) for c in found["a.mp4"]] == [(0.5, "given"), (0.7, "vlm"), (0.3, "vlm")]
    assert found["a.mp4"][0]["text"] == "a red square"
    for prompt, place in zip(report.prompts, (-2, -1), strict=True):
        lengths = [len(captions[place]["text"].split()) for captions in found.values()]
        assert (prompt.captions, prompt.shortest_words, prompt.longest_words) == (3, min(lengths), max(lengths))
    with Image.open(tmp_path / "out" / "captions.png") as sheet:
        assert sheet.size[1] > 3 * 48
    assert json.loads((tmp_path / "out" / "report.json").read_text())["num_captioned"] == 3


def test_all_is_written_before_the_folder_is_given_up(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = []

    def look(path: Path, *given: object) -> None:
        owners.extend(owners_of(path.parent))

    monkeypatch.setattr("megavideo.encoders.captioner.run.write_sheet", look)
    with chat_server(echo) as server:
        caption(settings(clips, *at(server)))
    assert [owner.use for owner in owners] == ["caption"]


def test_what_is_written_is_read_by_the_caption_table(clips: Path) -> None:
    with chat_server(echo) as server:
        cfg = settings(clips, *at(server, PROMPTS))
        caption(cfg)
    table = read_caption_table(Path(cfg.out) / "captions.jsonl", clips)
    assert table.notes == ()
    assert table.captions[clips / "a.mp4"] == "a red square"  # 1.0 against 0.7
    assert table.captions[clips / "sub" / "b.mp4"] == "8 frames. long"
    assert [c.weight for c in table.alternatives[clips / "c.png"]] == [0.7, 0.3]
    assert table.alternatives[clips / "c.png"][1] == WeightedCaption("1 frames. short", 0.3, "vlm")


def test_an_interrupted_run_goes_on(clips: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server fails for good after three answers, then the process dies while it writes a line."""

    def failing(number: int, content: dict[str, Any]) -> Reply:
        return echo(number, content) if number < 3 else Reply(503, "gone")

    with chat_server(failing) as server:
        cfg = settings(clips, *at(server, PROMPTS, "captioner.batch=1"))
        with pytest.raises(DataError, match=r"503.*run the same command again"):
            caption(cfg)
    log = Path(cfg.out) / "answers.jsonl"
    whole = log.read_bytes()
    assert whole.count(b"\n") == 1 + 3 and not (Path(cfg.out) / "captions.jsonl").exists()
    log.write_bytes(whole + whole.splitlines()[-1][:20])
    with chat_server(echo) as server:
        report = caption(settings(clips, *at(server, PROMPTS, "captioner.batch=4")))
        assert len(server.requests) == 3  # each caption once, over both runs
    assert (report.num_asked, report.num_kept, report.num_captioned) == (3, 3, 3)
    assert log.read_bytes().startswith(whole) and log.read_bytes().count(b"\n") == 1 + 6
    with chat_server(echo) as server:
        again = caption(settings(clips, *at(server, PROMPTS)))
        assert not server.requests
        more = caption(settings(clips, *at(server, "captioner.prompts=[short,other]", "captioner.weights=[1,2]")))
        assert {content["messages"][0]["content"][-1]["text"] for content in server.requests} == {"other"}
    assert (again.num_asked, again.num_kept) == (0, 6)
    assert (more.num_asked, more.num_kept) == (3, 3)


def test_a_killed_run_goes_on(clips: Path) -> None:
    """SIGKILL while the fourth caption is waited for: the three before it are on disk."""
    waiting = threading.Event()

    def stuck(number: int, content: dict[str, Any]) -> Reply:
        if number < 3:
            return echo(number, content)
        waiting.set()
        return Reply(body={}, seconds=60.0)

    with chat_server(stuck) as server:
        cfg = settings(clips, *at(server, PROMPTS, "captioner.batch=1"))
        process = multiprocessing.get_context("fork").Process(target=caption, args=(cfg,))
        process.start()
        assert waiting.wait(timeout=60)
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    with chat_server(echo) as server:
        report = caption(settings(clips, *at(server, PROMPTS)))
        assert len(server.requests) == 3
    assert (report.num_asked, report.num_kept, report.num_captioned) == (3, 3, 3)


def test_answers_of_other_settings_are_not_mixed(clips: Path) -> None:
    with chat_server(echo) as server:
        caption(settings(clips, *at(server, PROMPTS)))
        with pytest.raises(ConfigError, match=r"another frames and another model.*overwrite=true"):
            caption(settings(clips, *at(server, PROMPTS, "captioner.frames=2", model="other")))
        report = caption(settings(clips, *at(server, PROMPTS, "captioner.frames=2", "overwrite=true")))
        assert report.num_asked == 6
        log = clips.parent / "out" / "answers.jsonl"
        lines = log.read_text().splitlines()
        log.write_text("\n".join([lines[0], "{", *lines[1:]]) + "\n")
        with pytest.raises(DataError, match=r"answers\.jsonl, line 2: damaged"):
            caption(settings(clips, *at(server, PROMPTS, "captioner.frames=2")))


def test_a_failing_clip_is_told_and_tried_again(clips: Path) -> None:
    def refusing(number: int, content: dict[str, Any]) -> Reply:
        said = content["messages"][0]["content"]
        return Reply(400, "unsafe") if said[-1]["text"] == "short" and len(said) == 2 else echo(number, content)

    with chat_server(refusing) as server:
        report = caption(settings(clips, *at(server, PROMPTS)))
    assert (report.num_captioned, report.num_written, report.num_asked) == (2, 3, 5)
    told = {failure.file: failure.reason for failure in report.failures}
    assert set(told) == {"bad.mp4", "c.png"} and "unsafe" in told["c.png"] and told["c.png"].startswith("prompt 2: ")
    with chat_server(echo) as server:
        report = caption(settings(clips, *at(server, PROMPTS)))
        assert len(server.requests) == 1
    assert (report.num_captioned, report.num_kept) == (3, 5)


def test_expanding_what_is_there(clips: Path) -> None:
    """First a model looks, then another makes the result longer, without an ingest between."""
    with chat_server(echo) as server:
        first = settings(clips, *at(server, PROMPTS, "given_weight=0"), out="seen")
        caption(first)
        words = [f"captions={first.out}/captions.jsonl", "captioner.prompts=[more]", "captioner.weights=[2]"]
        cfg = settings(clips, *at(server, *words), kind="expand", out="longer")
        report = caption(cfg)
    assert (report.num_captioned, report.num_asked) == (3, 3)
    assert rows(cfg)["sub/b.mp4"] == [
        {"text": "8 frames. long", "weight": 0.7, "source": "vlm"},
        {"text": "8 frames. short", "weight": 0.3, "source": "vlm"},
        {"text": "longer: 8 frames. long", "weight": 2.0, "source": "expanded"},
    ]
    with chat_server(echo) as server:
        cfg = settings(clips, *at(server), kind="expand", out="partly")
        report = caption(cfg)
    assert set(rows(cfg)) == {"a.mp4"}
    assert {failure.file: failure.reason for failure in report.failures}["c.png"] == "has no caption to expand"
    # Another caption to expand is another question, and the answer to the old one is not taken for it.
    write_captions(clips, {"a.mp4": "a crimson square"})
    with chat_server(echo) as server:
        again = caption(cfg := settings(clips, *at(server), kind="expand", out="partly"))
    assert again.num_asked == 1 and rows(cfg)["a.mp4"][1]["text"] == "longer: a crimson square"


def test_frames_are_spread_evenly(clips: Path) -> None:
    assert frame_numbers(20, 4) == (2, 7, 12, 17)
    assert frame_numbers(3, 8) == (0, 1, 2) and frame_numbers(9, 1) == (4,)
    found, _ = find_clips(settings(clips, "captioner.path=x"), Share(0, 1))
    view = view_of(found[0], 4, 32)
    assert view.frames.shape == (4, 24, 32, 3) and (view.numbers, view.total, view.fps) == ((2, 7, 12, 17), 20, 8.0)
    # The square is where it is in these frames: it moves right by two of 64 pixels a frame, and is 16 wide.
    for frame, number in zip(view.frames, view.numbers, strict=True):
        red = np.flatnonzero((frame[..., 0].astype(int) - frame[..., 1] > 90).any(axis=0))
        assert abs(red[0] - number) <= 1 and abs(red[-1] + 1 - (number + 8)) <= 1


def test_weights() -> None:
    given = [WeightedCaption("a", 3.0), WeightedCaption("b", 1.0, "vlm")]
    new = [WeightedCaption("c", 0.7, "expanded"), WeightedCaption("a", 0.3, "expanded")]
    assert weighted(given, 2.0, new) == (
        WeightedCaption("a", 1.8),
        WeightedCaption("b", 0.5, "vlm"),
        WeightedCaption("c", 0.7, "expanded"),
    )
    assert weighted(given, 0.0, new) == tuple(new)
    assert weighted([], 1.0, []) == ()


def test_nothing_can_come_of_it(clips: Path) -> None:
    with chat_server(lambda number, content: Reply(400, "never")) as server:
        with pytest.raises(DataError, match=r"no clip got a caption .*never.*report\.json"):
            caption(settings(clips, *at(server)))
        with pytest.raises(DataError, match="no such file or folder"):
            caption(settings(clips.parent / "gone", *at(server)))
        with pytest.raises(DataError, match="cannot be read"):
            caption(settings(clips, *at(server, "captions=gone.jsonl")))
        (clips.parent / "file").write_text("")
        with pytest.raises(ConfigError, match="is a file"):
            caption(settings(clips, *at(server), out="file"))


def listed_clips(clips: Path) -> Path:
    write_captions(clips, {name: f"caption of {name}" for name in ("a.mp4", "sub/b.mp4", "c.png")})
    ingest(load(IngestRun, "ingest", [f"src={clips}", f"out={clips.parent / 'list'}"]))
    return clips.parent / "list"


def test_an_ingested_folder_in_shares(clips: Path) -> None:
    """Three tasks of a job array, one of which has nothing to do or fails, and then one process for the rest."""
    listed = listed_clips(clips)
    clip_list = read_clip_list(listed)
    with chat_server(echo) as server:
        words = at(server, PROMPTS)
        reports = [caption(settings(listed, *words, f"shard={index}/3")) for index in (2, 0)]
        done = sum(report.num_asked for report in reports)
        assert reports[-1].num_waiting == 6 - done and len(server.requests) == done < 6
        whole = caption(settings(listed, *words))  # with what the shares have, under another number of processes
        assert (whole.num_asked, whole.num_kept, whole.num_waiting) == (6 - done, done, 0)
        assert len(server.requests) == 6
        with pytest.raises(ConfigError, match="run ingest first"):
            caption(settings(clips, *words, "shard=0/2", out="other"))
        again = caption(settings(listed, *words, "overwrite=true"))
        assert (again.num_asked, again.num_kept) == (6, 0)
    assert [path.name for path in sorted((clips.parent / "out").glob("answers*"))] == ["answers.jsonl"]
    table = read_caption_table(clips.parent / "out" / "captions.jsonl", clip_list.root)
    for row in clip_list.rows:
        captions = table.of(row.clip_id, clip_list.path(row))
        assert captions is not None and captions[0].text == row.caption and len(captions) == 3


def test_all_captions_of_an_ingested_clip_are_kept(clips: Path) -> None:
    given = {"file": "a.mp4", "captions": [{"text": "square", "weight": 3}, {"text": "a red square", "weight": 1}]}
    (clips / "captions.jsonl").write_text(json.dumps(given) + "\n")
    ingest(load(IngestRun, "ingest", [f"src={clips}", f"out={clips.parent / 'list'}"]))
    with chat_server(echo) as server:
        cfg = settings(clips.parent / "list", *at(server, "captioner.prompts=[long]", "captioner.weights=[1]"))
        caption(cfg)
    shares = {caption["text"]: caption["weight"] for caption in rows(cfg)["a.mp4"]}
    assert shares == {"square": 0.75, "a red square": 0.25, "8 frames. long": 1.0}


def test_shares_cover_each_clip_once(clips: Path) -> None:
    listed = listed_clips(clips)
    with chat_server(echo) as server:
        reports = [caption(settings(listed, *at(server, PROMPTS), f"shard={index}/3")) for index in range(3)]
        assert len(server.requests) == 6
    assert sum(report.num_asked for report in reports) == 6
    assert (reports[-1].num_waiting, reports[-1].num_captioned) == (0, 3)


def test_two_runs_at_once(clips: Path) -> None:
    with chat_server(echo) as server:
        cfg = settings(clips, *at(server, PROMPTS))
        caption(cfg)
        head = json.loads((Path(cfg.out) / "answers.jsonl").read_text().splitlines()[0])
        with AnswerLog(Path(cfg.out), Share(0, 1), head["settings"], overwrite=False):
            with pytest.raises(OutputInUse, match="another task"):
                caption(cfg)
