"""Scores by measures that are handed in: what is measured when, what is kept, and what becomes of clips by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.config.load import load
from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.clip_scores import (
    ClipFitConfig,
    CodecMotionConfig,
    EmbeddingConfig,
    LabelConfig,
    ScoresConfig,
)
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest import ClipRow, ingest, read_clip_list
from megavideo.data.ingest import page as page_module
from megavideo.data.ingest.charts import Chart
from megavideo.data.ingest.fingerprints import Fingerprints
from megavideo.data.ingest.scoring.alike import Embeddings, find_alike
from megavideo.data.ingest.scoring.codec_motion import CodecMotion
from megavideo.data.ingest.scoring.kept import SCORES_FOLDER, KeptValues, read_values, scores_path, write_values
from megavideo.data.ingest.scoring.measure import EMBEDDING, ClipFrames
from megavideo.errors import ConfigError
from tests.data.clip_files import moving_square, write_captions, write_clip
from tests.data.store_clips import upload
from tests.data.test_ingest_cuts import texture

COLOURS = {"a.mp4": 20, "b.mp4": 80, "c.mp4": 140, "d.mp4": 200}
KEEP_ALL = FiltersConfig(min_change=None, duplicate_bits=None)
ON = ScoresConfig(nsfw=LabelConfig(folder="of the test", label="of the test"))


class Redness:
    """A measure of frames: their mean red, 0..1; it notes what it is shown, and fails at the clip `fails_at`."""

    name: str = "nsfw"
    reads_caption: bool = False

    def __init__(self, key: str = "1", fails_at: int = -1) -> None:
        self.key = key
        self.shown: list[str] = []
        self.batches: list[int] = []
        self._fails_at = fails_at

    def measure(self, clips: Sequence[ClipFrames]) -> list[float]:
        self.batches.append(sum(len(clip.frames) for clip in clips))
        if len(self.shown) == self._fails_at:
            raise RuntimeError("killed")
        self.shown += [clip.row.file for clip in clips]
        assert all(clip.frames.dtype == np.uint8 and clip.frames.ndim == 4 for clip in clips)
        return [float(clip.frames[..., 0].mean() / 255) for clip in clips]


class CaptionLength(Redness):
    """A measure of captions."""

    name: str = "clip"
    reads_caption: bool = True

    def measure(self, clips: Sequence[ClipFrames]) -> list[float]:
        self.shown += [clip.row.file for clip in clips]
        return [len(clip.row.caption) / 100 for clip in clips]


class ColourVector(Redness):
    """A measure whose values are vectors: of mean colours."""

    name: str = EMBEDDING

    def measure(self, clips: Sequence[ClipFrames]) -> list[np.ndarray]:  # type: ignore[override]
        means = [clip.frames.mean((0, 1, 2)) - 90 for clip in clips]
        return [(mean / np.linalg.norm(mean)).astype(np.float32) for mean in means]


@pytest.fixture
def charts(monkeypatch: pytest.MonkeyPatch) -> list[Chart]:
    """What is drawn, which takes most of the time of so few clips."""
    drawn: list[Chart] = []

    def draw(asked: Sequence[Chart]) -> bytes:
        drawn[:] = asked
        return b""

    monkeypatch.setattr(page_module, "draw_charts", draw)
    return drawn


@pytest.fixture
def folder(tmp_path: Path, charts: list[Chart]) -> Path:
    """Four clips of a square, redder one by one, and an image."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, red in COLOURS.items():
        frames = moving_square(12, 64, 80, (red, 40, 30))
        frames[..., 0] = np.maximum(frames[..., 0], red)
        write_clip(folder / name, frames)
    Image.fromarray(np.full((48, 48, 3), (250, 10, 10), np.uint8)).save(folder / "e.png")
    write_captions(folder, {name: f"clip {name}" for name in (*COLOURS, "e.png")})
    return folder


def run(folder: Path | str, out: Path, scores: ScoresConfig = ON, **settings: object) -> IngestRun:
    cfg = IngestRun(src=str(folder), out=str(out), filters=KEEP_ALL, scores=scores)
    return replace(cfg, **settings)  # type: ignore[arg-type]


def asked(cfg: ScoresConfig, **bounds: float) -> ScoresConfig:
    return replace(cfg, nsfw=replace(cfg.nsfw, **bounds))


def rows(out: Path) -> dict[str, ClipRow]:
    return {row.file: row for row in read_clip_list(out).rows}


def test_without_a_folder_nothing_changes(folder: Path, tmp_path: Path, charts: list[Chart]) -> None:
    ingest(IngestRun(src=str(folder), out=str(tmp_path / "plain"), filters=KEEP_ALL))
    plain = (tmp_path / "plain" / "clips.jsonl").read_bytes()
    assert {name for row in rows(tmp_path / "plain").values() for name in row.scores} == {
        "change", "motion", "sharpness", "aesthetic",
    }  # fmt: skip
    assert not (tmp_path / "plain" / SCORES_FOLDER).exists()
    ingest(run(folder, tmp_path / "scored"), [Redness()])
    scored = rows(tmp_path / "scored")
    assert all("nsfw" in row.scores for row in scored.values())
    # off again, in the folder in which they were on
    ingest(IngestRun(src=str(folder), out=str(tmp_path / "scored"), filters=KEEP_ALL))
    assert (tmp_path / "scored" / "clips.jsonl").read_bytes() == plain
    words = [f"src={folder}", "out=x"]
    assert load(IngestRun, "ingest", words).scores == ScoresConfig()


def test_thresholds_drop_with_a_reason_and_measure_nothing_again(
    folder: Path, tmp_path: Path, charts: list[Chart]
) -> None:
    out, measure = tmp_path / "out", Redness()
    ingest(run(folder, out), [measure])
    values = {name: row.scores["nsfw"] for name, row in rows(out).items()}
    assert list(values) == sorted(values, key=lambda name: values[name]) and len(measure.shown) == 5
    assert values["e.png"] == pytest.approx(250 / 255, abs=1e-4)
    report = ingest(run(folder, out, asked(ON, maximum=values["c.mp4"], minimum=values["b.mp4"])), [measure])
    assert list(rows(out)) == ["b.mp4", "c.mp4"] and len(measure.shown) == 5
    reasons = {clip.file: (clip.kind, clip.reason) for clip in report.dropped}
    assert reasons["d.mp4"] == ("nsfw", f"nsfw {values['d.mp4']:.4g} is above {values['c.mp4']:g}")
    assert reasons["a.mp4"] == ("nsfw", f"nsfw {values['a.mp4']:.4g} is below {values['b.mp4']:g}")
    assert report.dropped_by_kind == {"nsfw": 3} and report.dropped[0].scores is not None
    assert report.dropped[0].scores["nsfw"] == values["a.mp4"]
    (chart,) = (chart for chart in charts if chart.title == "NSFW")
    assert chart.axis == f"probability, kept from {values['b.mp4']:g} to {values['c.mp4']:g}"
    assert chart.thresholds == (values["b.mp4"], values["c.mp4"])
    assert (sum(chart.histogram.kept), sum(chart.histogram.dropped)) == (2, 3)
    other = Redness(key="2")
    ingest(run(folder, out), [other])
    assert len(other.shown) == 5  # other weights


def test_only_what_passes_all_else_is_measured(folder: Path, tmp_path: Path) -> None:
    out, measure = tmp_path / "out", Redness()
    strict = replace(KEEP_ALL, min_sharpness=1e6)
    cfg = run(folder, out, filters=strict)
    with pytest.raises(Exception, match="none of 5 clips can be used"):
        ingest(cfg, [measure])
    assert not measure.shown
    ingest(replace(cfg, filters=replace(strict, min_sharpness=None)), [measure])
    assert len(measure.shown) == 5


def test_another_caption_is_another_fit(folder: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "out", replace(ON, clip=ClipFitConfig(folder="of the test"))
    measures = [Redness(), CaptionLength()]
    ingest(run(folder, out, scores), measures)
    write_captions(folder, {name: f"clip {name}" for name in (*COLOURS, "e.png")} | {"b.mp4": "a longer one by far"})
    ingest(run(folder, out, scores), measures)
    assert measures[1].shown[5:] == ["b.mp4"] and len(measures[0].shown) == 5
    assert rows(out)["b.mp4"].scores["clip"] == 0.19


def test_array_tasks_and_batches(folder: Path, tmp_path: Path) -> None:
    whole, measure = tmp_path / "whole", Redness()
    ingest(run(folder, whole, replace(ON, batch=6)), [measure])
    assert sum(measure.batches) == 4 * 4 + 1 and max(measure.batches) <= 6 + 3
    shown: list[list[str]] = []
    for task in range(2):
        measure = Redness()
        report = ingest(run(folder, tmp_path / "out", shard=f"{task}/2"), [measure])
        shown.append(measure.shown)
    assert report.inputs_waiting == 0 and all(shown) and sum(map(len, shown)) == 5
    assert (tmp_path / "out" / "clips.jsonl").read_bytes() == (whole / "clips.jsonl").read_bytes()


def test_a_task_that_was_stopped_goes_on(folder: Path, tmp_path: Path) -> None:
    """What was kept stays; and inputs that others have still to score are waited for."""
    out, one = tmp_path / "out", replace(ON, batch=1)
    with pytest.raises(RuntimeError):
        ingest(run(folder, out, one), [Redness(fails_at=3)])
    ingest(run(folder, out, one), [measure := Redness()])
    assert measure.shown == ["d.mp4", "e.png"]
    ingest(run(folder, tmp_path / "whole", one), [Redness()])
    assert (tmp_path / "whole" / "clips.jsonl").read_bytes() == (out / "clips.jsonl").read_bytes()
    scores_path(out, "a.mp4").unlink()
    scores_path(out, "b.mp4").write_text('{"format": 1, "file": "b.mp4", "clips": {"x": 1}}')  # damaged
    waiting = [ingest(run(folder, out, one, shard=f"{task}/2"), [Redness()]).inputs_waiting for task in range(2)]
    assert waiting[1] == 0


def test_a_clip_that_cannot_be_read_any_more_is_dropped_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megavideo.data.ingest.scoring import stage as stage_module
    from megavideo.errors import DataError

    real = stage_module.clip_frames

    def broken(path: Path, row: ClipRow, *values: int) -> np.ndarray:
        if row.file == "b.mp4":
            raise DataError(f"{path}: damaged at frame 3")
        return real(path, row, *values)

    monkeypatch.setattr(stage_module, "clip_frames", broken)
    report = ingest(run(folder, tmp_path / "out"), [Redness()])
    assert [(clip.file, clip.kind, clip.reason) for clip in report.dropped] == [
        ("b.mp4", "unreadable", "damaged at frame 3")
    ]
    monkeypatch.undo()
    measure = Redness()
    assert ingest(run(folder, tmp_path / "out"), [measure]).num_clips == 5 and measure.shown == ["b.mp4"]


def test_clips_of_a_store_are_scored(folder: Path, tmp_path: Path, s3_prefix: str) -> None:
    ingest(run(folder, tmp_path / "local"), [Redness()])
    ingest(run(upload(folder, f"{s3_prefix}/clips"), tmp_path / "out"), [Redness()])
    assert (tmp_path / "out" / "clips.jsonl").read_bytes() == (tmp_path / "local" / "clips.jsonl").read_bytes()


def test_clips_of_like_embeddings_are_dropped(folder: Path, tmp_path: Path) -> None:
    write_clip(folder / "f.mp4", moving_square(20, 64, 80, (20, 40, 30)))  # more frames: kept in the place of a.mp4
    write_captions(folder, {name: f"clip {name}" for name in (*COLOURS, "e.png", "f.mp4")})
    scores = ScoresConfig(embedding=EmbeddingConfig(folder="of the test", duplicate_cosine=0.98))
    report = ingest(run(folder, tmp_path / "out", scores), [ColourVector()])
    reasons = {clip.file: (clip.kind, clip.reason) for clip in report.dropped}
    assert reasons["a.mp4"][0] == "alike" and reasons["a.mp4"][1].startswith("is like f.mp4 (cosine ")
    assert "f.mp4" in rows(tmp_path / "out") and "e.png" in rows(tmp_path / "out")
    loose = replace(scores, embedding=replace(scores.embedding, duplicate_cosine=1.0))
    assert ingest(run(folder, tmp_path / "out", loose), [ColourVector(fails_at=0)]).num_clips == 6


@pytest.mark.parametrize(("blocks", "others"), [(2048, 8192), (7, 5)])
def test_like_embeddings_are_found_exactly(
    blocks: int, others: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept ones, one by one against all before, whatever the blocks."""
    monkeypatch.setattr("megavideo.data.ingest.scoring.alike._ROWS", blocks)
    monkeypatch.setattr("megavideo.data.ingest.scoring.alike._OTHERS", others)
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 16))
    vectors = centres[random.integers(0, 40, 300)] + 0.25 * random.normal(size=(300, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    clips, embeddings = Fingerprints(tmp_path), Embeddings(tmp_path)
    repeated = np.where(random.random(300) < 0.1, 0, -1)
    for vector in vectors:
        seconds = None if random.random() < 0.3 else 1.0
        clips.add("00" * 32, "00", int(random.integers(1, 5)), int(random.integers(1, 9)), seconds)
        embeddings.add(vector)
    found, cosines = find_alike(clips, embeddings, 0.9, repeated)
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    kept: list[int] = []
    expected = np.full(300, -1)
    for index in sorted(range(300), key=lambda one: (-clips.pixels[one], -clips.frames[one], one)):
        if repeated[index] >= 0:
            continue
        near = {one: exact[index] @ exact[one] for one in kept if clips.is_image[one] == clips.is_image[index]}
        best = max(near, key=lambda one: near[one], default=None)
        if best is not None and near[best] >= 0.9:
            expected[index] = best
            assert cosines[index] == pytest.approx(near[best], abs=1e-5)
        else:
            kept.append(index)
    np.testing.assert_array_equal(found, expected)
    assert 50 < (found >= 0).sum() < 250
    with pytest.raises(ValueError, match="an embedding of 3 numbers"):
        embeddings.add(np.zeros(3))


@pytest.mark.parametrize(("step", "rate", "codec"), [(2, 8, "libx264"), (4, 8, "libx264"), (2, 24, "mpeg4")])
def test_codec_motion_is_a_speed(step: int, rate: int, codec: str, tmp_path: Path) -> None:
    """In % of the diagonal a second, as the optical flow's."""
    frames = texture(1, 16, 96, 128, step).astype(np.float32)
    path = write_clip(tmp_path / "x.mp4", frames.astype(np.uint8), fps=rate, codec=codec)
    row = ClipRow(
        clip_id="x", file="x.mp4", caption="x", frames=16, fps=float(rate), width=128, height=96, pixel_aspect=1.0,
        is_image=False,
    )  # fmt: skip
    (value,) = CodecMotion().measure_file(path, [row])
    assert value == pytest.approx(100 * step * rate / float(np.hypot(96, 128)), rel=0.15)
    parts = [replace(row, start=start, frames=8) for start in (0, 8)]
    halves = CodecMotion().measure_file(path, parts)
    assert all(half == pytest.approx(value, rel=0.3) for half in halves)


def test_codec_motion_is_none_where_the_codec_tells_none(folder: Path, tmp_path: Path) -> None:
    still = np.repeat(texture(1, 1, 64, 64), 12, axis=0)
    write_clip(folder / "still.mp4", still)
    write_clip(folder / "vp9.webm", moving_square(12, 64, 80), codec="libvpx-vp9")
    write_captions(folder, dict.fromkeys(("a.mp4", "still.mp4", "vp9.webm", "e.png"), "x"))
    ingest(run(folder, tmp_path / "out", ScoresConfig(codec_motion=CodecMotionConfig(enabled=True, minimum=0.0))))
    found = {name: row.scores.get("codec_motion") for name, row in rows(tmp_path / "out").items()}
    assert found["still.mp4"] == 0.0 and found["vp9.webm"] is None and found["e.png"] is None
    assert found["a.mp4"] is not None and found["a.mp4"] > 0.1


def test_settings_that_do_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    words = [f"src={folder}", f"out={tmp_path}/out"]
    for more, message in (
        ("scores.nsfw.maximum=0.5", r"scores\.nsfw\.maximum=0\.5: has no effect without scores\.nsfw\.folder"),
        ("scores.nsfw.folder=x", r"scores\.nsfw\.label: scores\.nsfw\.folder needs it"),
        ("scores.embedding.folder=x", r"scores\.embedding\.duplicate_cosine"),
        ("scores.codec_motion.minimum=1", r"codec_motion\.enabled=true"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(IngestRun, "ingest", [*words, more])
    with pytest.raises(ConfigError, match=r"at least 0\.5 and at most 0\.2"):
        load(
            IngestRun, "ingest", [*words, "scores.clip.folder=x", "scores.clip.minimum=0.5", "scores.clip.maximum=0.2"]
        )
    with pytest.raises(ConfigError, match="a score called nsfw is there already"):
        on = ["scores.nsfw.folder=x", "scores.nsfw.label=y", "filters.own=[mine.nsfw]"]
        load(IngestRun, "ingest", [*words, *on])
    with pytest.raises(ValueError, match="are asked for"):
        ingest(run(folder, tmp_path / "out"))


def test_kept_values(tmp_path: Path) -> None:
    clips = {"id": KeptValues({"nsfw": ("k", 0.5), "codec_motion": ("k", None)}, "e", np.ones(3, np.float16), "why")}
    write_values(tmp_path, "ü/x.mp4", clips)
    read = read_values(tmp_path, "ü/x.mp4")["id"]
    assert (read.values, read.embedding_key, read.fault) == (clips["id"].values, "e", "why")
    assert read.embedding is not None and read.embedding.tolist() == [1, 1, 1]
    stored = json.loads(scores_path(tmp_path, "ü/x.mp4").read_text())
    stored["clips"]["id"]["values"]["nsfw"][1] = float("nan")
    scores_path(tmp_path, "ü/x.mp4").write_text(json.dumps(stored))
    assert read_values(tmp_path, "ü/x.mp4") == {}
