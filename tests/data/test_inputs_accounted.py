"""Two thousand inputs and more, good and bad, from files to shards: none is lost, and none comes twice."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megavideo.config.schema.prepare import AutoencoderConfig, EncodeRun, IngestRun, TextEncoderConfig
from megavideo.data.clips.formats import is_media
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.ingest.run import ingest
from megavideo.data.stream.shards import ShardReader
from megavideo.data.table.open import open_samples
from megavideo.encoders.encode.run import encode
from megavideo.evaluation.shapes.corpus import render_corpus

CLIPS, IMAGES = 1900, 100
COPIES, CUT, EMPTY, WORDLESS = 20, 10, 5, 7


def write_inputs(folder: Path, real_clips: Path | None) -> dict[str, str]:
    """Rendered clips and images, copies, broken files and files without a caption; those expected to be dropped."""
    truths = render_corpus(folder, CLIPS, IMAGES, seed=1)
    names = [truth.file for truth in truths]
    captions = {truth.file: truth.caption for truth in truths}
    expected = dict.fromkeys(names[-WORDLESS:], "caption")
    for name in expected:
        del captions[name]
    for number, name in enumerate(names[:COPIES]):
        shutil.copyfile(folder / name, folder / f"copy_{number:02d}.mp4")
        captions[f"copy_{number:02d}.mp4"] = captions[name]
        expected[name if name > f"copy_{number:02d}.mp4" else f"copy_{number:02d}.mp4"] = "duplicate"
    for number, name in enumerate(names[COPIES : COPIES + CUT]):
        path = folder / f"cut_{number:02d}.mp4"
        path.write_bytes((folder / name).read_bytes()[:600])
        captions[path.name], expected[path.name] = "a cut file", "unreadable"
    for number in range(EMPTY):
        (folder / f"empty_{number}.png").write_bytes(b"")
        captions[f"empty_{number}.png"], expected[f"empty_{number}.png"] = "an empty file", "unreadable"
    rows = [{"file": name, "caption": text} for name, text in captions.items()]
    if real_clips:
        shutil.copytree(real_clips, folder / "real")
        rows += [
            row | {"file": f"real/{row['file']}"}
            for row in map(json.loads, (real_clips / "captions.jsonl").read_text().splitlines())
        ]
        (folder / "real" / "captions.jsonl").unlink()
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return expected


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_input_is_kept_or_dropped_with_a_reason_and_every_clip_kept_is_encoded(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    try:
        real_clips = request.getfixturevalue("real_clips")
    except pytest.skip.Exception:
        real_clips = None  # the rendered ones are enough
    begin = time.monotonic()
    expected = write_inputs(tmp_path / "in", real_clips)
    inputs = sorted(p.relative_to(tmp_path / "in").as_posix() for p in (tmp_path / "in").rglob("*") if is_media(p))
    rendered = time.monotonic()

    report = ingest(IngestRun(src=str(tmp_path / "in"), out=str(tmp_path / "listed"), workers=2))
    listed = time.monotonic()
    kept, dropped = lines(tmp_path / "listed" / "clips.jsonl"), lines(tmp_path / "listed" / "dropped.jsonl")
    assert report.num_inputs == len(inputs) == report.inputs_kept + report.inputs_dropped
    assert (report.num_clips, report.num_dropped) == (len(kept), len(dropped))
    assert {row["file"] for row in (*kept, *dropped)} == set(inputs)
    pieces = Counter((row["file"], row["start"]) for row in (*kept, *dropped))
    assert max(pieces.values()) == 1
    of_files = Counter(row["file"] for row in (*kept, *dropped))
    assert all(of_files[name] == 1 for name in inputs if not name.startswith("real/"))
    assert all(row["reason"] for row in dropped)
    found = {row["file"]: row["kind"] for row in dropped if not row["file"].startswith("real/")}
    assert found == expected

    out = tmp_path / "out"
    encoded = encode(
        EncodeRun(
            src=str(tmp_path / "listed"), out=str(out), area=4096, max_frames=9, shard_bytes=1 << 20, workers=1,
            autoencoder=AutoencoderConfig(kind="pca", channels=4, fit_clips=8),
            text_encoder=TextEncoderConfig(kind="bytes", dim=16, max_tokens=16),
        )
    )  # fmt: skip
    ended = time.monotonic()
    manifest = lines(out / "manifest_v1.jsonl")
    lost = {clip.clip_id: clip.reason for clip in encoded.dropped}
    assert all(lost.values())
    names = Counter(row["sample_id"] for row in manifest)
    assert names + Counter(lost.keys()) == Counter(row["clip_id"] for row in kept)  # each of them once
    dataset = open_dataset(str(out))
    table, reader = open_samples(dataset), ShardReader(dataset, None)
    for sample in range(table.num_samples):
        reader.read(sample, table.sample_id(sample))
    assert reader.counts().samples == len(manifest) == table.num_samples
    print(
        f"{len(inputs)} inputs: {len(kept)} clips kept, {len(dropped)} dropped {dict(report.dropped_by_kind)}, "
        f"{len(manifest)} encoded, {len(lost)} not; render {rendered - begin:.0f} s, ingest {listed - rendered:.0f} s, "
        f"encode {ended - listed:.0f} s"
    )
