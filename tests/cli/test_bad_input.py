"""The verbs on a small dataset, and thirty kinds of bad input: one clear message each, exit status 2, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from megavideo.cli.main import main
from megavideo.data.clips.write_video import write_video

MICRO = ("train", "run=micro", "train.steps=2", "optim.warmup_steps=1", "observe.tensorboard=false")
SMALL_PACKS = "data.tokens_per_pack=128"
Started = subprocess.Popen[str]


@dataclass(frozen=True)
class Work:
    """A folder with good and bad inputs, and the commands that run in processes of their own meanwhile."""

    folder: Path
    trained: str
    on_damaged: Started
    on_nowhere: Started


def start(words: tuple[str, ...], folder: Path, root: Path) -> Started:
    """`python -m megavideo` in `folder`. An engine can be made once in a process, so that training has its own."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "megavideo", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def end(started: Started) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    out, err = started.communicate(timeout=300)
    return started.returncode, out, err


def make_clips(folder: Path) -> None:
    """Three captioned clips, and folders that are each bad in one way."""
    clips = folder / "clips"
    clips.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        write_video(clips / f"{number}.mp4", rng.integers(0, 255, (9, 64, 96, 3), dtype=np.uint8), 8.0)
        (clips / f"{number}.txt").write_text(f"clip number {number}")
    for name in ("empty", "silent", "truncated"):
        (folder / name).mkdir()
    shutil.copy(clips / "0.mp4", folder / "silent")
    (folder / "truncated" / "a.mp4").write_bytes((clips / "0.mp4").read_bytes()[:200])
    (folder / "truncated" / "a.txt").write_text("a clip")
    (folder / "file").write_text("x")
    (folder / "broken.jsonl").write_text('{"file": "0.mp4", "caption": \n')


def spoil_copies(folder: Path) -> None:
    """Copies of the list of clips and of the dataset with one file of each cut short."""
    for name, file in (("list", "clips.jsonl"), ("latents", "manifest_v1.jsonl")):
        copy = shutil.copytree(folder / name, folder / f"spoilt_{name}")
        (copy / file).write_bytes((copy / file).read_bytes()[:-20])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Iterator[Work]:
    """The clips, their list, a dataset of them, and a run of two steps."""
    folder = tmp_path_factory.mktemp("work")
    make_clips(folder)
    assert main(["ingest", f"src={folder / 'clips'}", f"out={folder / 'list'}"]) == 0
    assert main(["encode", f"src={folder / 'list'}", f"out={folder / 'latents'}", "autoencoder.fit_clips=3"]) == 0
    spoil_copies(folder)
    on_nowhere = start((*MICRO, "data.uri=nowhere", "output=others"), folder, repo_root)  # a run folder has one owner
    status, out, err = end(start((*MICRO, "data.uri=latents", SMALL_PACKS, "--json"), folder, repo_root))
    assert status == 0, err
    damaged = shutil.copytree(folder / "runs", folder / "damaged")
    for path in damaged.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    on_damaged = start((*MICRO, "data.uri=latents", SMALL_PACKS, "output=damaged"), folder, repo_root)
    yield Work(folder, out, on_damaged, on_nowhere)
    for started in (on_nowhere, on_damaged):
        if started.poll() is None:
            started.kill()
            started.communicate()


@pytest.fixture
def inside(work: Work, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The work folder as the current one; the variables that a process group sets are taken back."""
    monkeypatch.chdir(work.folder)
    with patch.dict(os.environ):
        yield work.folder


def check_message(err: str, part: str) -> None:
    """Standard error holds progress and one line of error."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert part in errors[0]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("ingest src=nowhere out=x", "nowhere"),
        ("ingest src=empty out=x", "no video"),
        ("ingest src=silent out=x", "caption"),
        ("ingest src=truncated out=x", "a.mp4"),
        ("ingest src=file out=x", "not a video"),
        ("ingest src=clips out=x captions=nowhere.jsonl", "nowhere.jsonl"),
        ("ingest src=clips out=x captions=broken.jsonl", "broken.jsonl"),
        ("ingest src=clips out=file", "file"),
        ("ingest src=clips out=file/x", "file/x"),
        ("encode src=nowhere out=x", "nowhere"),
        ("encode src=spoilt_list out=x", "clips.jsonl"),
        ("encode src=list out=latents", "latents"),
        ("encode src=list out=file", "file"),
        ("encode src=list out=x autoencoder=wan autoencoder.path=nowhere", "autoencoder.path"),
        ("encode src=list out=x text_encoder=transformers text_encoder.path=empty", "empty"),
        ("encode src=list out=x aria=400", "did you mean area"),
        ("sample ckpt=nowhere out=a.mp4 --prompt x", "nowhere"),
        ("sample ckpt=empty out=a.mp4 --prompt x", "empty"),
        ("sample ckpt=damaged/micro out=a.mp4 --prompt x", "damaged"),
        ("sample ckpt=runs/micro out=a.mp4 scheduler=ddim --prompt x", "scheduler"),
        ("sample ckpt=runs/micro out=a.mp4 --prompt x --prompt y", "out="),
        ("sample ckpt=runs/micro out=file/a.mp4 steps=1 frames=1 height=16 width=16 --prompt x", "file"),
    ],
)
def test_one_message(words: str, part: str, inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    check_message(capfd.readouterr().err, part)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("data.uri=empty name=other", "dataset.json"),
        ("data.uri=list name=other", "`megavideo encode`"),
        ("data.uri=spoilt_latents name=other", "manifest_v1.jsonl"),
        ("data.uri=latents train.stepz=3", "did you mean train.steps?"),
        ("data.uri=latents optim.lr=fast", "optim.lr"),
        ("data.uri=latents data.tokens_per_pack=0", "data.tokens_per_pack"),
        ("data.uri=latents data.tokens_per_pack=64 name=other", "none of the 3 samples fits"),
        (f"data.uri=latents {SMALL_PACKS} model.text_dim=64 name=other", "model.text_dim"),
        (f"data.uri=latents {SMALL_PACKS} model.layers=3", "model.layers"),
        (f"data.uri=latents {SMALL_PACKS} layout=dp2", "dp"),
        (f"data.uri=latents {SMALL_PACKS} output=file", "file"),
    ],
)
def test_one_message_of_training(words: str, part: str, inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*MICRO, *words.split()]) == 2
    check_message(capfd.readouterr().err, part)


def test_the_run_reports_one_object(work: Work) -> None:
    assert json.loads(work.trained)["steps"] == 2


def test_sample_of_the_run(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "ckpt=runs/micro", "out=a.mp4", "steps=2", "frames=5", "height=64", "width=64", "--json"]
    assert main([*words, "--prompt", 'a "clip", {number}']) == 0
    assert isinstance(json.loads(capfd.readouterr().out), dict)
    assert (inside / "a.mp4").stat().st_size > 0


def test_one_message_of_a_process(work: Work) -> None:
    for started, part in ((work.on_nowhere, "nowhere"), (work.on_damaged, "damaged")):
        status, out, err = end(started)
        assert (status, out) == (2, ""), err
        check_message(err, part)
