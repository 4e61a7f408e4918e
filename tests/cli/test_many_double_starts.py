"""Twenty times two starts at the same moment, for every verb that writes: one outcome, whole, and never a mixed one.

The two differ in a setting, so that the outcome tells whose it is. Who got through ends with 0, who did not with 75; on
a busy machine one may come after the other has ended, and both end with 0.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megavideo.checkpoint.read import CheckpointReader
from megavideo.cli.main import main
from megavideo.config.dump import from_yaml
from megavideo.config.schema.vae import TrainVaeRun
from megavideo.data.clips.media import decode_frames
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.storage.open import open_storage
from megavideo.errors import RETRY_STATUS
from megavideo.testing.dataset import write_dataset
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config, micro_words
from tests.autoencoder.settings import tiny_words
from tests.encoders.chat_server import chat_server, completion
from tests.encoders.encode_cases import samples_in_shards, write_film, write_list
from tests.start_together import start_together

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("MEGAVIDEO_DOUBLE_STARTS", "20"))
_ENCODE = ("area=4096", "max_frames=5", "unit_clips=4", "autoencoder=pca", "autoencoder.channels=8",
           "autoencoder.fit_clips=4", "text_encoder=bytes", "text_encoder.dim=64")  # fmt: skip
# from the folder of a round to two command lines; from that folder and the statuses to whose the outcome is
Commands = Callable[[Path], Sequence[Sequence[str]]]
Whose = Callable[[Path, list[int]], set[int]]


def twice(root: Path, commands: Commands, whose: Whose, late: str = "in use by") -> None:
    """Start both, `ROUNDS` times, each time in a folder of its own; `late` is told to one that came afterwards."""
    refused = 0
    for number in range(ROUNDS):
        place = root / f"round_{number}"
        place.mkdir()
        ended = start_together(commands(place), root / f"logs_{number}")
        statuses, told = [finished.status for finished in ended], [finished.err for finished in ended]
        assert 0 in statuses, told
        for status, text in zip(statuses, told, strict=True):
            assert status == 0 or (status == RETRY_STATUS and "in use by" in text) or late in text, told
        assert whose(place, statuses) & {which for which, status in enumerate(statuses) if status == 0}
        left = [path for path in place.rglob("*") if path.name.startswith(".owner")]
        assert left == [], left
        refused += RETRY_STATUS in statuses
    logging.getLogger(__name__).warning("%d of %d second starts were refused", refused, ROUNDS)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint."""
    return write_run(micro_config(output=tmp_path / "runs", data__uri="gone", model__layers=1))


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """A small dataset."""
    write_dataset(str(tmp_path / "latents"), 8)
    return tmp_path / "latents"


def test_train(tmp_path: Path, latents: Path) -> None:
    def commands(place: Path) -> list[list[str]]:
        words = micro_words(name="clash", output=place, data__uri=latents, train__steps=8, model__layers=1)
        return [["train", *words, f"optim.lr={rate}"] for rate in ("0.001", "0.00001")]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        run = place / "clash"
        found = rows(run / "metrics.jsonl")
        assert [row["step"] for row in found] == list(range(1, 9))
        assert statuses == [0, 0] or not list(run.glob("config.*.yaml"))
        (saved,) = (run / "checkpoints").iterdir()
        (rate,) = {row["learning_rate"] for row in found}
        assert CheckpointReader(saved).manifest.config == (run / "config.yaml").read_text()
        return {[0.001, 0.00001].index(rate)}

    twice(tmp_path, commands, whose)


def test_train_vae(tmp_path: Path) -> None:
    def commands(place: Path) -> list[list[str]]:
        return [["train-vae", *tiny_words(place, f"optim.lr={rate}")] for rate in ("0.001", "0.0005")]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        found = rows(place / "run" / "metrics.jsonl")
        assert [row["step"] for row in found] == [1, 2, 3, 4]
        assert statuses == [0, 0] or not list((place / "run").glob("config.*.yaml"))
        rate = from_yaml(TrainVaeRun, (place / "run" / "config.yaml").read_text(), source="config.yaml").optim.lr
        return {[0.001, 0.0005].index(rate)}

    twice(tmp_path, commands, whose)


def test_ingest(tmp_path: Path) -> None:
    names = ("many", "few")
    for name, count in zip(names, (3, 1), strict=True):
        for number in range(count):
            film = write_film(tmp_path / name / str(number))
            film.with_suffix(".txt").write_text(f"film {number} of {name}")

    def commands(place: Path) -> list[list[str]]:
        return [["ingest", f"src={tmp_path / name}", f"out={place / 'clips'}"] for name in names]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        (name,) = {row["caption"].rpartition(" ")[2] for row in rows(place / "clips" / "clips.jsonl")}
        report = json.loads((place / "clips" / "report.json").read_bytes())
        assert report["src"].endswith(name)
        assert json.loads((place / "clips" / "ingest.json").read_bytes())["root"].endswith(name)
        return {names.index(name)}

    twice(tmp_path, commands, whose)


@pytest.mark.parametrize("same", [False, True])
def test_encode(tmp_path: Path, same: bool) -> None:
    film = write_film(tmp_path / "film")
    lists = [write_list(tmp_path / "many", film, range(12)), write_list(tmp_path / "few", film, range(20, 22))]

    def commands(place: Path) -> list[list[str]]:
        sources = lists[:1] * 2 if same else lists
        return [["encode", f"src={src}", f"out={place / 'data'}", *_ENCODE] for src in sources]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        for number, status in enumerate(statuses):
            assert status == 0 or (not same and main(commands(place)[number]) == 0)
        info = open_dataset(str(place / "data")).info
        found = sorted(samples_in_shards(place / "data"))
        numbers = range(12) if same else [*range(12), 20, 21]
        assert found == [f"clip-{number:03d}" for number in numbers] and info.dropped == ()
        assert info.num_samples == len(found)
        return {0, 1}

    twice(tmp_path, commands, whose)


def test_encode_to_a_store(tmp_path: Path, s3_bucket: str) -> None:
    film = write_film(tmp_path / "film")
    lists = [write_list(tmp_path / "many", film, range(12)), write_list(tmp_path / "few", film, range(20, 22))]

    def commands(place: Path) -> list[list[str]]:
        return [["encode", f"src={src}", f"out={s3_bucket}/{place.name}", *_ENCODE] for src in lists]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        for number, status in enumerate(statuses):
            assert status == 0 or main(commands(place)[number]) == 0
        uri = f"{s3_bucket}/{place.name}"
        info = open_dataset(uri).info
        assert (info.num_samples, info.dropped) == (14, ())
        assert open_storage(uri).list(".owner/") == []
        return {0, 1}

    twice(tmp_path, commands, whose)


def test_caption(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film")
    clips = write_list(tmp_path / "clips", film, range(4))
    with chat_server(lambda number, content: completion("seen")) as server:
        endpoint = [f"captioner.endpoint.url={server.url}", "captioner.endpoint.model=tiny"]

        def commands(place: Path) -> list[list[str]]:
            words = ["caption", f"src={clips}", f"out={place / 'captions'}", *endpoint]
            return [[*words, f"captioner.longest_side={side}"] for side in (32, 48)]

        def whose(place: Path, statuses: list[int]) -> set[int]:
            answers = rows(place / "captions" / "answers.jsonl")
            assert len(rows(place / "captions" / "captions.jsonl")) == 4
            asked = [(row["clip"], row["prompt"]) for row in answers[1:]]
            assert len(asked) == len(set(asked))
            return {[32, 48].index(answers[0]["settings"]["longest_side"])}

        twice(tmp_path, commands, whose, late="holds answers asked for with another longest_side")


def test_sample(tmp_path: Path, run: Path) -> None:
    frames = (5, 9)

    def commands(place: Path) -> list[list[str]]:
        words = ["sample", f"ckpt={run}", f"out={place / 'ball.mp4'}", "height=32", "width=32", "steps=1"]
        return [[*words, f"frames={count}", "--prompt", "a ball"] for count in frames]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        assert {path.name for path in place.iterdir()} == {"ball.mp4", "ball.png"}
        video = decode_frames(place / "ball.mp4", 0, 5)
        assert video.shape == (5, 32, 32, 3)
        return {0, 1}

    twice(tmp_path, commands, whose)


def test_reshard(tmp_path: Path, run: Path) -> None:
    def commands(place: Path) -> list[list[str]]:
        return [["checkpoint", "reshard", str(run), f"out={place / 'moved'}", f"ranks={ranks}"] for ranks in (2, 3)]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        assert {path.name for path in (place / "moved").iterdir()} == {"step_00000005"}
        assert main(["checkpoint", "verify", str(place / "moved" / "step_00000005")]) == 0
        return {len(CheckpointReader(place / "moved" / "step_00000005").manifest.files) - 2}

    twice(tmp_path, commands, whose, late="is there already")


def test_report(tmp_path: Path, run: Path) -> None:
    def commands(place: Path) -> list[list[str]]:
        return [["report", str(run), f"out={place / 'page.html'}"]] * 2

    def whose(place: Path, statuses: list[int]) -> set[int]:
        assert (place / "page.html").read_text().rstrip().endswith("</html>")
        assert statuses == [0, 0]
        return {0, 1}

    twice(tmp_path, commands, whose)


def test_slurm_gen(tmp_path: Path) -> None:
    def commands(place: Path, *more: str) -> list[list[str]]:
        words = [
            "slurm-gen",
            "cluster=laptop_test",
            "cluster.nodes=2",
            "run=micro",
            "curriculum=none",
            f"out={place / 'jobs'}",
        ]
        return [[*words, f"cluster.partition={name}", *more] for name in ("first", "second")]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        return {number for number, words in enumerate(commands(place, "--check")) if main(words) == 0}

    twice(tmp_path, commands, whose)


def test_doctor(tmp_path: Path, latents: Path) -> None:
    def commands(place: Path) -> list[list[str]]:
        words = ["doctor", f"data={latents}", "text_tokens_per_pack=64", f"out={place / 'report'}"]
        return [[*words, f"tokens_per_pack={tokens}"] for tokens in (64, 128)]

    def whose(place: Path, statuses: list[int]) -> set[int]:
        found = {path.name for path in (place / "report").iterdir()}
        assert {"histograms.png", "report.json"} < found
        json.loads((place / "report" / "report.json").read_bytes())
        return {0, 1}

    twice(tmp_path, commands, whose)
