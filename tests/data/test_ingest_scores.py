"""Scores and their bounds, and scores of one's own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from megavideo.config.load import load
from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest import ingest, read_clip_list
from megavideo.data.ingest.examine import Recipe
from megavideo.data.ingest.filters.aesthetic import Aesthetic, colourfulness
from megavideo.data.ingest.filters.change import Change
from megavideo.data.ingest.filters.choose import bounds, build_scores
from megavideo.data.ingest.filters.motion import Motion
from megavideo.data.ingest.filters.score import ClipView
from megavideo.data.ingest.filters.sharpness import Sharpness
from megavideo.errors import ConfigError, DataError
from tests.data.clip_files import moving_square, write_captions, write_clip
from tests.data.test_ingest_cuts import texture

OWN = """
def redness(frames, clip):
    assert frames.dtype.name == "uint8" and frames.ndim == 4 and len(clip.seconds) == len(frames)
    return float(frames[..., 0].mean() - frames[..., 2].mean())

def broken(frames, clip):
    return frames.no_such_attribute

number = 3
"""


def view(frames: np.ndarray, rate: float = 8.0) -> ClipView:
    seconds = tuple(index / rate for index in range(len(frames)))
    return ClipView(seconds, rate, frames.shape[2], frames.shape[1], len(frames) == 1)


def test_motion_is_a_speed() -> None:
    """In % of the diagonal a second, whatever the size of the picture and the rate of its frames."""
    for step, rate in ((1, 8.0), (2, 8.0), (2, 4.0)):
        frames = _smooth(texture(1, 12, 96, 128, step))
        truth = 100 * step * rate / float(np.hypot(96, 128))
        assert Motion().score(frames, view(frames, rate)) == pytest.approx(truth, rel=0.25)
    doubled = np.kron(frames, np.ones((1, 2, 2, 1), np.uint8))
    truth = Motion().score(frames, view(frames))
    assert Motion().score(doubled, view(doubled)) == pytest.approx(truth, rel=0.1)
    still = np.repeat(frames[:1], 12, axis=0)
    assert Motion().score(still, view(still)) < 0.01
    assert Motion().score(frames[:1], view(frames[:1])) == 0.0


def test_sharpness_falls_with_blur() -> None:
    frames = texture(2, 3, 96, 128)
    values = []
    for radius in (0, 1, 2, 4):
        blurred = np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(radius))) for f in frames])
        values.append(Sharpness().score(blurred, view(blurred)))
    assert values == sorted(values, reverse=True) and values[0] > 3 * values[-1]
    flat = np.full((2, 64, 64, 3), 90, np.uint8)
    assert Sharpness().score(flat, view(flat)) == 0.0


def test_colourfulness_is_the_paper_s() -> None:
    grey = np.repeat(np.random.default_rng(0).integers(0, 255, (32, 32, 1), np.uint8), 3, axis=-1)
    assert colourfulness(grey) == pytest.approx(0.0, abs=1e-4)
    # Half red, half green: rg is 255 and -255, yb is 127.5 throughout.
    halves = np.zeros((2, 10, 3), np.uint8)
    halves[:, :5, 0] = halves[:, 5:, 1] = 255
    assert colourfulness(halves) == pytest.approx(255.0 + 0.3 * 127.5)
    plain, rich = np.full((1, 64, 64, 3), 128, np.uint8), texture(4, 1, 64, 64)
    assert Aesthetic().score(plain, view(plain)) < 0.1 < 0.5 < Aesthetic().score(rich, view(rich)) <= 1.0


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 300), (8, 8)])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_any_size_has_scores(size: tuple[int, int], count: int) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (count, *size, 3), np.uint8)
    for score in build_scores(()):
        assert np.isfinite(score.score(frames, view(frames)))


def test_change_sees_a_small_thing_and_no_noise() -> None:
    frames = np.repeat(texture(5, 1, 96, 128), 20, axis=0)
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 1.5, frames.shape), 0, 255).astype(np.uint8)
    least = FiltersConfig().min_change
    assert least is not None and Change().score(noisy, view(noisy)) < least
    frames[7, 40:48, 40:48] += 20
    assert Change().score(frames, view(frames)) > least


def test_each_bound_names_its_reason(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    write_clip(src / "slow.mp4", _smooth(texture(1, 20, 96, 128, 1)))
    write_clip(src / "fast.mp4", _smooth(texture(2, 20, 96, 128, 6)))
    write_clip(src / "still.mp4", np.repeat(texture(3, 1, 96, 128), 9, axis=0))
    Image.fromarray(np.full((40, 40, 3), 128, np.uint8)).save(src / "plain.png")
    Image.fromarray(texture(7, 1, 64, 64)[0]).filter(ImageFilter.GaussianBlur(4)).save(src / "blurred.png")
    write_clip(src / "good.mp4", _smooth(texture(4, 20, 96, 128, 3)))
    write_captions(src, {path.name: "x" for path in src.glob("*.*")})

    def kinds(**filters: object) -> dict[str, str]:
        report = ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), filters=FiltersConfig(**filters)))
        assert report.inputs_kept + report.inputs_dropped == report.num_inputs == 6
        return {clip.file: clip.kind for clip in report.dropped}

    assert kinds() == {"still.mp4": "static"}
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").rglob("*.json")}
    assert kinds(min_change=None) == {}
    assert kinds(min_motion=8.0) == {"still.mp4": "static", "slow.mp4": "slow"}
    assert kinds(max_motion=20.0) == {"still.mp4": "static", "fast.mp4": "fast"}
    assert kinds(min_sharpness=2.0)["plain.png"] == kinds(min_sharpness=2.0)["blurred.png"] == "blurred"
    assert kinds(min_aesthetic=0.1) == {"still.mp4": "static", "plain.png": "plain"}
    # Thresholds are applied to what was measured: nothing was decoded again.
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_scores_of_a_test.py").write_text(OWN)
    (tmp_path / "own_scores_with_an_error.py").write_text("def score(frames, clip) return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_scores_of_a_test"


@pytest.mark.parametrize("workers", [1, None])
def test_own_scores(own_module: str, tmp_path: Path, workers: int | None) -> None:
    src = tmp_path / "src"
    src.mkdir()
    write_clip(src / "red.mp4", moving_square(9, 48, 64, (255, 0, 0)))
    write_clip(src / "blue.mp4", moving_square(9, 48, 64, (0, 0, 255)))
    write_captions(src, {"red.mp4": "x", "blue.mp4": "y"})

    def run(own: str) -> list[tuple[str, str]]:
        filters = FiltersConfig(own=(own,))
        report = ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), filters=filters, workers=workers))
        return [(clip.file, clip.kind) for clip in report.dropped]

    assert run(f"{own_module}.redness>=0") == [("blue.mp4", "redness")]
    assert run(f"{own_module}.redness<=0.0") == [("red.mp4", "redness")]
    assert run(f"{own_module}.redness") == []
    scores = {row.file: row.scores["redness"] for row in read_clip_list(tmp_path / "out").rows}
    assert scores["red.mp4"] > 5 > -5 > scores["blue.mp4"]
    with pytest.raises(DataError, match=r"none of 2 clips can be used .*own score .*broken failed"):
        run(f"{own_module}.broken")
    # Corrected code is tried again.
    with pytest.raises(DataError, match="failed"):
        run(f"{own_module}.broken>=1")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("no_such_module_anywhere.score", "cannot be imported"),
        ("own_scores_of_a_test.nothing", "cannot be imported"),
        ("own_scores_of_a_test.number", "no function"),
        ("own_scores_with_an_error.score", r"cannot be imported \(SyntaxError: "),
    ],
)
def test_own_scores_that_are_not_there(own_module: str, own: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as fault:
        build_scores((own,))
    assert fault.value.field == "filters.own"


def test_a_changed_own_score_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module, src = tmp_path / "own_score_that_changes.py", tmp_path / "src"
    src.mkdir()
    write_clip(src / "a.mp4", moving_square(9, 48, 64))
    write_captions(src, {"a.mp4": "x"})
    for value in (1.0, 20.0, 20.0):
        module.write_text(f"def score(frames, clip):\n    return {value}\n")
        sys.modules.pop(module.stem, None)
        importlib.invalidate_caches()
        filters = FiltersConfig(own=(f"{module.stem}.score",))
        ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), filters=filters))
        assert read_clip_list(tmp_path / "out").rows[0].scores["score"] == value
    assert Recipe(None, 60.0, True, ()).key == "7e7437fbc1fb90b2"  # parts are kept as long as it is the same


def test_settings_have_the_schema_s_defaults() -> None:
    cfg = load(IngestRun, "ingest", ["src=a", "out=b"])
    assert cfg == IngestRun(src="a", out="b")
    assert [bound.name for bound in bounds(cfg.filters)] == ["change"]


def test_sets_of_filters() -> None:
    strict, none = (load(IngestRun, "ingest", ["src=a", "out=b", f"filters={name}"]) for name in ("strict", "none"))
    assert {bound.name for bound in bounds(strict.filters)} == {"change", "motion", "sharpness", "aesthetic"}
    assert bounds(none.filters) == () and none.filters.duplicate_bits is None


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["shard=3/3"], "shard"),
        (["shard=first"], "shard"),
        (["filters.own=[score]"], "filters.own[0]"),
        (["filters.own=['a.b>=1.2.3']"], "filters.own[0]"),
        (["filters.own=['a.b>3']"], "filters.own[0]"),
        (["filters.own=[a.motion]"], "filters.own[0]"),
        (["filters.own=[a.x,b.x]"], "filters.own[1]"),
        (["filters.min_seconds=9", "filters.max_seconds=3"], "filters.max_seconds"),
        (["filters.min_motion=9", "filters.max_motion=3"], "filters.max_motion"),
        (["filters.duplicate_bits=40"], "filters.duplicate_bits"),
        (["workers=0"], "workers"),
    ],
)
def test_rules(words: list[str], field: str) -> None:
    with pytest.raises(ConfigError) as fault:
        load(IngestRun, "ingest", ["src=a", "out=b", *words])
    assert fault.value.field == field


def _smooth(frames: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(2))) for frame in frames])
