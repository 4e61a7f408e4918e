"""The verbs on a small dataset, and twenty kinds of bad input: one clear message each, exit status 2, no traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megavideo.cli.main import main
from megavideo.data.write_video import write_video

MICRO = ["train", "run=micro", "train.steps=2", "optim.warmup_steps=1", "observe.tensorboard=false"]


def in_process(words: list[str], folder: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Training starts process groups, so that it has a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from megavideo.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """A folder with clips, their list, a dataset of them and a run of two steps."""
    folder = tmp_path_factory.mktemp("work")
    clips = folder / "clips"
    clips.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        write_video(clips / f"{number}.mp4", rng.integers(0, 255, (9, 64, 96, 3), dtype=np.uint8), 8.0)
        (clips / f"{number}.txt").write_text(f"clip number {number}")
    assert main(["ingest", f"src={clips}", f"out={folder / 'list'}"]) == 0
    assert main(["encode", f"src={folder / 'list'}", f"out={folder / 'latents'}", "autoencoder.fit_clips=3"]) == 0
    done = in_process([*MICRO, "data.uri=latents", "data.tokens_per_pack=128", "--json"], folder, repo_root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    (folder / "empty").mkdir()
    (folder / "silent").mkdir()
    shutil.copy(clips / "0.mp4", folder / "silent")
    (folder / "file").write_text("x")
    damaged = shutil.copytree(folder / "runs", folder / "damaged")
    for path in damaged.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    return folder


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("ingest src=nowhere out=x", "nowhere"),
        ("ingest src=empty out=x", "no video"),
        ("ingest src=silent out=x", "caption"),
        ("ingest src=clips out=x captions=nowhere.jsonl", "nowhere.jsonl"),
        ("ingest src=clips out=file", "file"),
        ("encode src=nowhere out=x", "nowhere"),
        ("encode src=list out=latents", "latents"),
        ("encode src=list out=x autoencoder=wan autoencoder.path=nowhere", "autoencoder.path"),
        ("encode src=list out=x text_encoder=transformers text_encoder.path=empty", "empty"),
        ("encode src=list out=x aria=400", "did you mean area"),
        ("train data.uri=latents train.steps=many", "train.steps"),
        ("train data.uri=latents data.tokens_per_pack=0", "data.tokens_per_pack"),
        ("sample ckpt=nowhere out=a.mp4 --prompt x", "nowhere"),
        ("sample ckpt=empty out=a.mp4 --prompt x", "empty"),
        ("sample ckpt=damaged/micro out=a.mp4 --prompt x", "damaged"),
        ("sample ckpt=runs/micro out=a.mp4 scheduler=ddim --prompt x", "scheduler"),
        ("sample ckpt=runs/micro out=a.mp4 --prompt x --prompt y", "out="),
    ],
)
def test_one_message(
    words: str, part: str, work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    assert main(words.split()) == 2
    check_message(capfd.readouterr().err, part)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["data.uri=nowhere"], "nowhere"),
        (["data.uri=latents", "data.tokens_per_pack=4096", "data.max_segments=3"], "tokens_per_pack"),
        (["data.uri=latents", "model.text_dim=64", "name=other"], "model.text_dim"),
        (["data.uri=latents", "data.tokens_per_pack=128", "model.layers=3"], "model.layers"),
        (["data.uri=latents", "data.tokens_per_pack=128", "layout=dp2"], "dp"),
        (["data.uri=latents", "data.tokens_per_pack=128", "output=file"], "file"),
        (["data.uri=latents", "data.tokens_per_pack=128", "output=damaged"], "damaged"),
    ],
)
def test_one_message_of_training(words: list[str], part: str, work: Path, repo_root: Path) -> None:
    done = in_process([*MICRO, *words], work, repo_root)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    check_message(done.stderr, part)


def check_message(err: str, part: str) -> None:
    """Standard error holds progress and one line of error."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert part in errors[0]


def test_sample_of_the_run(work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(work)
    words = ["sample", "ckpt=runs/micro", "out=a.mp4", "steps=2", "frames=5", "height=64", "width=64", "--json"]
    assert main([*words, "--prompt", 'a "clip", {number}']) == 0
    assert isinstance(json.loads(capfd.readouterr().out), dict)
    assert (work / "a.mp4").stat().st_size > 0
