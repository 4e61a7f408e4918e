"""Each input is read once: over shares, over reruns, and where processes are killed. The outcome is always the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.config.texts import Share
from megavideo.data.ingest import ClipRow, IngestReport, ingest, read_clip_list
from megavideo.data.ingest.examine import Recipe, examine
from megavideo.data.ingest.part import Part, part_path, read_part
from megavideo.data.ingest.share import find_share, is_in_share
from megavideo.errors import ConfigError
from tests.data.clip_files import write_captions, write_clip
from tests.data.test_ingest_cuts import texture

NUM_CLIPS = 12
# What happens to the worker that measures a clip is told by a file.
OWN = """
import os, signal, time
from pathlib import Path

FOLDER = Path(__file__).parent

def deadly(frames, clip):
    poison = FOLDER / "poison"
    if poison.exists() and clip.width == 40:
        if poison.read_text() == "once":
            poison.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (FOLDER / "slow").exists():
        time.sleep(0.3)
    return 1.0
"""


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Twelve clips, the sixth of its own width, a damaged one and one without caption."""
    src = tmp_path / "src"
    src.mkdir()
    for number in range(NUM_CLIPS):
        write_clip(src / f"{number:02d}.mp4", texture(number, 5, 32, 40 if number == 5 else 32))
    (src / "bad.mp4").write_bytes(b"no video")
    write_clip(src / "silent.mp4", texture(99, 5, 32, 32))
    write_captions(src, {f"{number:02d}.mp4": f"clip {number}" for number in range(NUM_CLIPS)})
    return src


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "deadly_score.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return folder


FILTERS = FiltersConfig(own=("deadly_score.deadly",))


def run(src: Path, out: Path, **settings: object) -> IngestReport:
    return ingest(IngestRun(src=str(src), out=str(out), **settings))


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "parts").rglob("*.json")}


def listed(out: Path) -> tuple[bytes, bytes]:
    return (out / "clips.jsonl").read_bytes(), (out / "dropped.jsonl").read_bytes()


def test_shares_give_what_one_process_gives(clips: Path, tmp_path: Path) -> None:
    whole = run(clips, tmp_path / "one")
    assert (whole.num_inputs, whole.num_clips, whole.inputs_dropped) == (14, NUM_CLIPS, 2)
    reports = [run(clips, tmp_path / "three", shard=f"{index}/3") for index in (2, 0, 1)]
    assert [report.inputs_waiting > 0 for report in reports] == [True, True, False]
    assert reports[0].num_clips == 0 and reports[0].page is None
    assert reports[0].inputs_waiting > reports[1].inputs_waiting
    assert listed(tmp_path / "three") == listed(tmp_path / "one")
    # Any process may be the last, and whoever comes later changes nothing.
    before = times(tmp_path / "three")
    run(clips, tmp_path / "three")
    assert times(tmp_path / "three") == before
    assert listed(tmp_path / "three") == listed(tmp_path / "one")


def test_a_task_that_never_ran_is_made_up_for(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "out", shard="0/2")
    done = times(tmp_path / "out")
    assert 0 < len(done) < 14 and not (tmp_path / "out" / "clips.jsonl").exists()
    report = run(clips, tmp_path / "out")
    assert report.inputs_waiting == 0 and report.num_clips == NUM_CLIPS
    assert times(tmp_path / "out").items() >= done.items()


def test_only_what_changed_is_read_again(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before, files = times(out), listed(out)
    os.utime(clips / "00.mp4", ns=(1, 1))
    (clips / "01.mp4").write_bytes((clips / "02.mp4").read_bytes())
    (clips / "03.mp4").unlink()
    gone = part_path(out, "03.mp4").name
    write_clip(clips / "new.mp4", texture(50, 5, 32, 32))
    (clips / "new.txt").write_text("new")
    report = run(clips, out)
    changed = {name for name, when in times(out).items() if before.get(name) != when}
    # A touched file keeps what was measured; its part only learns the new time.
    assert changed == {part_path(out, name).name for name in ("00.mp4", "01.mp4", "new.mp4")}
    assert {clip.file: clip.kind for clip in report.dropped} == {
        "02.mp4": "duplicate", "bad.mp4": "unreadable", "silent.mp4": "caption",
    }  # fmt: skip
    assert report.num_clips == NUM_CLIPS - 1 and listed(out) != files
    assert [note.reason for note in report.caption_notes] == ["no such file"]
    # What decides on decoding makes all anew; thresholds do not.
    now = times(out)
    run(clips, out, filters=FiltersConfig(min_seconds=0.2, min_sharpness=1.0))
    assert times(out) == now
    run(clips, out, filters=FiltersConfig(max_seconds=0.5))
    # The part of the file that is gone stays as it is.
    assert times(out).items() & now.items() == {(gone, now[gone])}


def test_new_content_of_equal_size_and_time_is_read_again(clips: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", clips / "picture.bmp"
    captions = (clips / "captions.jsonl").read_text()

    def draw(seed: int) -> os.stat_result:
        Image.fromarray(texture(seed, 1, 400, 500)[0]).save(path)
        os.utime(path, ns=(10**18, 10**18))
        return path.stat()

    def row() -> ClipRow:
        (found,) = (row for row in read_clip_list(out).rows if row.file == path.name)
        return found

    before = draw(70)
    (clips / "captions.jsonl").write_text(captions + '{"file": "picture.bmp", "caption": "a texture"}\n')
    run(clips, out)
    first, parts = row(), times(out)
    after = draw(71)
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and after.st_size > 3 << 16
    run(clips, out, shard="0/1")
    changed = {name for name, when in times(out).items() if parts.get(name) != when}
    assert changed == {part_path(out, path.name).name}
    assert row().clip_id != first.clip_id and row().content != first.content
    # What lies between the blocks of the mark is known by the time of change, and gives another id as well.
    second, data = row(), bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 30_000] = bytes(30_000)
    path.write_bytes(data)
    run(clips, out)
    assert row().content == second.content and row().clip_id not in (first.clip_id, second.clip_id)
    # The same content has the same id wherever it is read.
    draw(70)
    run(clips, tmp_path / "elsewhere", workers=2)
    listed_there = {row.file: row.clip_id for row in read_clip_list(tmp_path / "elsewhere").rows}
    assert listed_there[path.name] == first.clip_id


def test_a_damaged_part_is_made_anew(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(clips, out)
    files = listed(out)
    part_path(out, "04.mp4").write_bytes(part_path(out, "04.mp4").read_bytes()[:100])
    part_path(out, "06.mp4").unlink()
    run(clips, out)
    assert listed(out) == files


def test_a_file_that_cannot_be_opened_is_accounted_for(clips: Path, tmp_path: Path) -> None:
    (clips / "gone.mp4").symlink_to(clips / "nowhere.mp4")
    report = run(clips, tmp_path / "out")
    assert report.inputs_waiting == 0
    assert report.inputs_kept + report.inputs_dropped == report.num_inputs == 15
    assert {clip.file: clip.kind for clip in report.dropped}["gone.mp4"] == "unreachable"


def test_a_killed_worker_loses_nothing(
    clips: Path, own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(clips, tmp_path / "plain", filters=FILTERS)
    (own / "poison").write_text("once")
    report = run(clips, tmp_path / "killed", filters=FILTERS, workers=2)
    assert "a worker died" in caplog.text and not (own / "poison").exists()
    assert report.num_clips == NUM_CLIPS
    assert listed(tmp_path / "killed") == listed(tmp_path / "plain")


def test_an_input_that_always_kills_is_recorded_and_tried_again(clips: Path, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (own / "poison").write_text("always")
    report = run(clips, out, filters=FILTERS, workers=2)
    assert {clip.file: clip.kind for clip in report.dropped}["05.mp4"] == "crashed"
    assert report.num_clips == NUM_CLIPS - 1
    before = times(out)
    (own / "poison").unlink()
    assert run(clips, out, filters=FILTERS).num_clips == NUM_CLIPS
    changed = {name for name, when in times(out).items() if before.get(name) != when}
    assert changed == {part_path(out, "05.mp4").name}


def test_a_killed_run_goes_on(clips: Path, own: Path, tmp_path: Path) -> None:
    """SIGKILL to the whole run while workers read: they end as well, and the next run reads only what is missing."""
    run(clips, tmp_path / "plain", filters=FILTERS)
    (own / "slow").touch()
    out = tmp_path / "out"
    words = [f"src={clips}", f"out={out}", "workers=2", "filters.own=[deadly_score.deadly]"]
    process = subprocess.Popen([sys.executable, "-m", "megavideo", "ingest", *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (not out.exists() or len(times(out)) < 3) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert children and not psutil.wait_procs(children, timeout=30)[1]
    done = times(out)
    assert 3 <= len(done) < 14 and not (out / "clips.jsonl").exists()
    assert all(read_part(out, f"{n:02d}.mp4") for n in range(NUM_CLIPS) if part_path(out, f"{n:02d}.mp4").exists())
    (own / "slow").unlink()
    assert run(clips, out, filters=FILTERS).num_clips == NUM_CLIPS
    assert times(out).items() >= done.items()
    assert listed(out) == listed(tmp_path / "plain")


def test_an_input_at_which_a_decoder_fails_in_an_unknown_way_is_recorded(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(path: Path, file: str, recipe: Recipe) -> Part:
        if file == "05.mp4":
            raise IndexError("no such stream")
        return examine(path, file, recipe)

    with monkeypatch.context() as patch:
        patch.setattr("megavideo.data.ingest.work.examine", stumble)
        report = run(clips, tmp_path / "out")
    (found,) = (clip for clip in report.dropped if clip.file == "05.mp4")
    assert (found.kind, found.reason) == ("crashed", "reading it failed (IndexError: no such stream)")
    assert report.num_clips == NUM_CLIPS - 1 and "Traceback" in caplog.text
    assert run(clips, tmp_path / "out").num_clips == NUM_CLIPS


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({}, (0, 1)),
        ({"ID": "0", "COUNT": "1", "MIN": "0", "MAX": "0"}, (0, 1)),
        ({"ID": "2", "COUNT": "4", "MIN": "0", "MAX": "3"}, (2, 4)),
        ({"ID": "5", "COUNT": "3", "MIN": "1", "MAX": "5"}, (2, 3)),
        ({"ID": "3", "COUNT": "3", "MIN": "1", "MAX": "7"}, None),
        ({"ID": "2", "COUNT": "3", "MIN": "1", "MAX": "4"}, None),
    ],
)
def test_share_of_a_job_array(variables: dict[str, str], share: tuple[int, int] | None) -> None:
    environment = {(f"SLURM_ARRAY_TASK_{name}"): value for name, value in variables.items()}
    if share is None:
        with pytest.raises(ConfigError, match="not evenly spaced"):
            find_share(None, environment)
    else:
        assert find_share(None, environment) == Share(*share)
    assert find_share("1/7", environment) == Share(1, 7)


def test_each_input_is_in_one_share() -> None:
    files = [f"clip_{number}.mp4" for number in range(1000)]
    shares = [[file for file in files if is_in_share(file, Share(index, 7))] for index in range(7)]
    assert sorted(file for share in shares for file in share) == sorted(files)
    assert all(100 < len(share) < 190 for share in shares)
