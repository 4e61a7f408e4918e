"""Samples during training: alike under every layout, the same noise each time, and whatever happens no end of a run."""

from __future__ import annotations

import io
import json
import logging
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from megavideo.generate import sample_files
from megavideo.generate.sample_files import Drawn, SampleFiles
from megavideo.observe.run_folder import RunFolder
from megavideo.parity.spec import ParitySpec
from megavideo.testing.ranks import run_ranks
from megavideo.testing.train_cases import Case, run_cases
from tests.train.conftest import Place
from tests.train.preview_cases import ASKED, PROMPTS, make_folder, run_layouts, without_encoders

TWO = ("pp2-zero1", "cp2-ring", "dp2-zero3")
FOUR = ("tp2-sp-cp2-ring", "tp2-pp2-dualpipev", "cp2-ring-dp2-zero3")
SPEC = ParitySpec(packs_per_step=4, steps=2)
DRAWN = Drawn(PROMPTS, (5, 16, 24), 8.0)

Videos = dict[int, list[np.ndarray]]


def sampled(layouts: tuple[str, ...], processes: int, root: Path) -> dict[str, Videos]:
    """Videos by step that each layout drew; training was to the last bit the one without samples."""
    for layout in layouts:
        make_folder(root / layout, SPEC)
    ranks = run_ranks(run_layouts, (SPEC, layouts, str(root)), root / "logs", processes=processes)
    for rank in ranks:
        for layout in layouts:
            assert rank[layout]["mixed"] == rank[layout]["plain"], layout
    return {layout: {step: videos_of(root / layout, step) for step in (1, 2)} for layout in layouts}


def videos_of(root: Path, step: int) -> list[np.ndarray]:
    place = root / "samples" / f"step_{step:08d}"
    files = ["00.mp4", "01.mp4", "02.mp4", "contact_sheet.png", "prompts.json"]
    assert sorted(path.name for path in place.iterdir()) == files
    assert json.loads((place / "prompts.json").read_text()) == list(PROMPTS)
    assert Image.open(place / "contact_sheet.png").width > 0
    return [frames_of(place / file) for file in files[:3]]


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(container.streams.video[0])])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    return sampled(("zero0",), 1, tmp_path_factory.mktemp("one"))["zero0"]


def check(found: Videos, one: Videos) -> None:
    for step, videos in found.items():
        for mine, theirs in zip(videos, one[step], strict=True):
            assert np.abs(mine.astype(int) - theirs.astype(int)).mean() < 0.1  # of 255, through a lossy file


def test_prompts_and_steps_differ_and_the_noise_does_not(one: Videos) -> None:
    for video in one[1]:
        assert video.shape == (ASKED.frames, ASKED.height, ASKED.width, 3)
    first, second = (one[step][0].astype(int) for step in (1, 2))
    changed = np.abs(first - second).mean()
    assert changed > 0  # the model has learned something
    assert np.abs(first - one[1][1].astype(int)).mean() > 5 * changed  # another prompt has other noise


def test_on_two_processes(one: Videos, tmp_path: Path) -> None:
    for layout, found in sampled(TWO, 2, tmp_path).items():
        print(layout)
        check(found, one)


@pytest.mark.slow
def test_on_four_processes(one: Videos, tmp_path: Path) -> None:
    for layout, found in sampled(FOUR, 4, tmp_path).items():
        print(layout)
        check(found, one)


def test_prompts_that_cannot_be_encoded_end_every_rank(tmp_path: Path) -> None:
    root = tmp_path / "bare"
    root.mkdir()
    mine, other = run_ranks(without_encoders, (SPEC, str(root)), tmp_path / "logs", processes=2)
    assert mine.startswith(f"{root}/encoders/encoders.json: missing")
    assert other == f"rank 0 failed: {mine}"


def latents() -> list[torch.Tensor]:
    return [torch.full((4, 2, 2, 4), float(number)) for number in range(len(PROMPTS))]


def test_a_failing_decoder_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path, SPEC)
    description = folder.encoders / "encoders.json"
    whole = description.read_bytes()
    files = SampleFiles(folder.samples, folder.encoders, DRAWN)
    description.write_text("{")
    with caplog.at_level(logging.WARNING):
        files.write(5, latents())
        files.close()
    assert "step 5: its samples could not be decoded or written" in caplog.text
    assert "encoders.json: missing or damaged" in caplog.text
    description.write_bytes(whole)
    files.write(6, latents())
    files.close()
    assert [path.name for path in folder.samples.iterdir()] == ["step_00000006"]  # and nothing unfinished


def test_a_step_that_is_made_again_replaces_its_samples(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, SPEC)
    files = SampleFiles(folder.samples, folder.encoders, DRAWN)
    for values in (latents(), latents()[::-1]):
        files.write(5, values)
        files.close()
    shown = videos_of(tmp_path, 5)
    assert [path.name for path in folder.samples.iterdir()] == ["step_00000005"]
    files.write(6, latents())
    files.close()
    again = videos_of(tmp_path, 6)
    # a product of floats may round otherwise at another address, and the codec makes more of it
    apart = np.array([[np.abs(one.astype(int) - two.astype(int)).mean() for two in again[::-1]] for one in shown])
    assert apart.diagonal().max() < 1.0 < apart[~np.eye(len(shown), dtype=bool)].min(), apart


def test_the_caller_never_waits_for_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder(tmp_path, SPEC)
    gate, load = threading.Event(), sample_files.load_autoencoder

    def late(place: Path) -> Any:
        gate.wait()
        return load(place)

    monkeypatch.setattr(sample_files, "load_autoencoder", late)
    files = SampleFiles(folder.samples, folder.encoders, DRAWN)
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            files.write(step, latents())
    gate.set()
    files.close()
    left_out = caplog.text.count("the decoder is still at work on earlier ones")
    assert left_out >= 2
    assert len(list(folder.samples.iterdir())) == 5 - left_out


def test_samples_of_a_run_are_shown_in_tensorboard(place: Place, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    asked = {"prompts": "[a red shape,a blue one]", "samples_every": 2, "sample_steps": 1, "frames": 5}
    words = place.words(
        "shown", train__steps=4, observe__tensorboard="true",
        **{f"validation__{name}": value for name, value in (asked | {"height": 16, "width": 24}).items()},
    )  # fmt: skip
    ((outcome,),) = run_cases([Case(words)], tmp_path / "logs", processes=1)
    assert outcome.report is not None, outcome.message
    folder = RunFolder(place.run("shown"))
    events = accumulator.EventAccumulator(str(folder.tensorboard)).Reload()
    pictures = {event.step: event.encoded_image_string for event in events.Images("samples")}
    assert set(pictures) == {2, 4}
    for step, picture in pictures.items():
        sheet = Image.open(folder.samples / f"step_{step:08d}" / "contact_sheet.png")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), np.asarray(sheet))


def test_a_sheet_is_shown_no_larger_than_a_screen_or_two(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, SPEC)
    files = SampleFiles(folder.samples, folder.encoders, Drawn(("one",), (5, 304, 408), 8.0))
    files.write(3, [torch.zeros(4, 2, 38, 51)])
    files.close()
    (shown,) = files.written()
    assert (shown.step, shown.sheet.dtype, shown.sheet.shape[1:]) == (3, np.uint8, (1600, 3))
    assert Image.open(folder.samples / "step_00000003" / "contact_sheet.png").width > 1600
    assert files.written() == []
