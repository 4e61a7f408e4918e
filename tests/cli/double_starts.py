"""What two starts of a verb on one output may end as: a table with each verb that writes, and those that do not.

The two command lines differ in a setting, so that the outcome tells whose it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavideo.checkpoint.read import CheckpointReader
from megavideo.cli.main import main
from megavideo.config.dump import from_yaml
from megavideo.config.schema.vae import TrainVaeRun
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.storage.open import open_storage
from megavideo.observe.whole_file import TEMPORARY_PREFIX
from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_words
from tests.autoencoder.settings import tiny_words
from tests.data.store_clips import upload
from tests.encoders.encode_cases import samples_in_shards, write_film, write_list

ENCODE = ("area=4096", "max_frames=5", "unit_clips=4", "autoencoder=pca", "autoencoder.channels=8", "workers=1",
          "autoencoder.fit_clips=4", "text_encoder=bytes", "text_encoder.dim=64")  # fmt: skip
NO_ROOM = ("limits.cache_gb=0", "limits.shm_gb=0", "limits.output_gb=0")  # is asked for
LEFTOVERS = (".owner", TEMPORARY_PREFIX, ".preflight-")


@dataclass(frozen=True)
class Ended:
    """Two starts in the folder `place`: their command lines, as they were given, and their exit statuses."""

    place: Path
    words: Sequence[Sequence[str]]
    statuses: Sequence[int]

    @property
    def all_done(self) -> bool:
        """Whether one came after the other had ended, or both did the work together."""
        return all(status == 0 for status in self.statuses)

    def again(self) -> list[int]:
        """Exit statuses of the same command by those that were refused."""
        return [main(words) for words, status in zip(self.words, self.statuses, strict=True) if status != 0]


@dataclass(frozen=True)
class DoubleStart:
    """Two starts of one verb on one output.

    `commands` gives the two command lines for a folder; `whose` raises AssertionError unless the outcome is whole, and
    gives the numbers of those whose it may be. `late` is told to one that came when the other had ended. `passes` are
    the exit statuses of those that got through.
    """

    commands: Callable[[Path], Sequence[Sequence[str]]]
    whose: Callable[[Ended], set[int]]
    late: str = "in use by"
    passes: tuple[int, int] = (0, 0)


# from a folder for what both read, and a fixture by its name
Maker = Callable[[Path, Callable[[str], Any]], DoubleStart]


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _one_config(run: Path, ended: Ended) -> None:
    """Settings are replaced by those of a later start alone."""
    assert ended.all_done or not list(run.glob("config.*.yaml"))


def _train(root: Path, fixture: Callable[[str], Any], store: str = "") -> DoubleStart:
    write_dataset(str(root / "latents"), 8)

    def commands(place: Path) -> list[list[str]]:
        words = micro_words(name="clash", output=place, data__uri=root / "latents", train__steps=8, model__layers=1)
        uri = [f"checkpoint.uri={store}/{place.name}"] if store else []
        return [["train", *words, *uri, f"optim.lr={rate}"] for rate in ("0.001", "0.00001")]

    def whose(ended: Ended) -> set[int]:
        run = ended.place / "clash"
        found = rows(run / "metrics.jsonl")
        assert [row["step"] for row in found] == list(range(1, 9))
        _one_config(run, ended)
        (saved,) = (run / "checkpoints").glob("step_*")
        (rate,) = {row["learning_rate"] for row in found}
        assert CheckpointReader(saved).manifest.config == (run / "config.yaml").read_text()
        if store:
            assert main(["checkpoint", "verify", f"{store}/{ended.place.name}/clash"]) == 0
        return {[0.001, 0.00001].index(rate)}

    return DoubleStart(commands, whose)


def _train_into_a_store(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    return _train(root, fixture, fixture("s3_bucket"))


def _train_vae(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    def commands(place: Path) -> list[list[str]]:
        return [["train-vae", *tiny_words(place, f"optim.lr={rate}")] for rate in ("0.001", "0.0005")]

    def whose(ended: Ended) -> set[int]:
        run = ended.place / "run"
        assert [row["step"] for row in rows(run / "metrics.jsonl")] == [1, 2, 3, 4]
        _one_config(run, ended)
        rate = from_yaml(TrainVaeRun, (run / "config.yaml").read_text(), source="config.yaml").optim.lr
        return {[0.001, 0.0005].index(rate)}

    return DoubleStart(commands, whose)


def _films(root: Path) -> list[Path]:
    """Two folders of captioned films: three of one, and one of the other."""
    for name, count in (("many", 3), ("few", 1)):
        for number in range(count):
            film = write_film(root / name / str(number))
            film.with_suffix(".txt").write_text(f"film {number} of {name}")
    return [root / "many", root / "few"]


def _ingest(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    return _ingests([str(folder) for folder in _films(root)])


def _ingest_from_a_store(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    bucket = fixture("s3_bucket")
    return _ingests([upload(folder, f"{bucket}/{folder.name}") for folder in _films(root)], "cache")


def _ingests(sources: list[str], cache: str = "") -> DoubleStart:
    names = [source.rpartition("/")[2] for source in sources]

    def commands(place: Path) -> list[list[str]]:
        words = [f"out={place / 'clips'}", "workers=1", "filters.duplicate_bits=null"]
        words += [f"store.cache={place / cache}"] if cache else []
        return [["ingest", f"src={source}", *words] for source in sources]

    def whose(ended: Ended) -> set[int]:
        out = ended.place / "clips"
        captions = sorted({row["caption"] for row in rows(out / "clips.jsonl")})
        name = captions[0].rpartition(" ")[2]
        assert captions == [f"film {number} of {name}" for number in range({"many": 3, "few": 1}[name])]
        clips = [row["clip_id"] for row in rows(out / "clips.jsonl")]
        report = json.loads((out / "report.json").read_bytes())
        assert report["src"].endswith(name) and len(clips) == len(set(clips))
        assert json.loads((out / "ingest.json").read_bytes())["root"].endswith(name)
        assert not cache or not any(path.is_file() for path in (ended.place / cache).rglob("*"))
        return {names.index(name)}

    return DoubleStart(commands, whose)


def _lists(root: Path) -> list[Path]:
    film = write_film(root / "film")
    return [write_list(root / "many", film, range(12)), write_list(root / "few", film, range(20, 22))]


def _asked_for(ended: Ended) -> list[str]:
    numbers = {f"src={name}": found for name, found in (("many", range(12)), ("few", range(20, 22)))}
    folders = {word.rpartition("/")[2] for words in ended.words for word in words if word.startswith("src=")}
    return sorted(f"clip-{number:03d}" for name in folders for number in numbers[f"src={name}"])


def _encode(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    lists = _lists(root)

    def commands(place: Path) -> list[list[str]]:
        return [["encode", f"src={src}", f"out={place / 'data'}", *ENCODE] for src in lists]

    def whose(ended: Ended) -> set[int]:
        assert set(ended.again()) <= {0}
        info = open_dataset(str(ended.place / "data")).info
        found = sorted(samples_in_shards(ended.place / "data"))
        assert found == _asked_for(ended) and info.dropped == () and info.num_samples == len(found)
        return {0, 1}

    return DoubleStart(commands, whose)


def _encode_into_a_store(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    bucket, lists = fixture("s3_bucket"), _lists(root)

    def commands(place: Path) -> list[list[str]]:
        return [["encode", f"src={src}", f"out={bucket}/{place.name}", *ENCODE] for src in lists]

    def whose(ended: Ended) -> set[int]:
        assert set(ended.again()) <= {0}
        uri = f"{bucket}/{ended.place.name}"
        dataset = open_dataset(uri)
        assert (dataset.info.num_samples, dataset.info.dropped) == (len(_asked_for(ended)), ())
        assert open_storage(uri).list(".owner/") == []
        return {0, 1}

    return DoubleStart(commands, whose)


def _caption(root: Path, fixture: Callable[[str], Any], share: str = "") -> DoubleStart:
    clips = write_list(root / "clips", write_film(root / "film"), range(4))
    endpoint = [f"captioner.endpoint.url={fixture('captioner_url')}", "captioner.endpoint.model=tiny"]
    name = "answers-0-of-2.jsonl" if share else "answers.jsonl"

    def commands(place: Path) -> list[list[str]]:
        words = ["caption", f"src={clips}", f"out={place / 'captions'}", *endpoint, *([share] if share else [])]
        return [[*words, f"captioner.longest_side={side}"] for side in (32, 48)]

    def whose(ended: Ended) -> set[int]:
        out = ended.place / "captions"
        answers = rows(out / name)
        asked = [(row["clip"], row["prompt"]) for row in answers[1:]]
        assert len(asked) == len(set(asked)) > 0
        assert share or len(rows(out / "captions.jsonl")) == 4
        return {[32, 48].index(answers[0]["settings"]["longest_side"])}

    late = "another task writes here" if share else "holds answers asked for with another longest_side"
    return DoubleStart(commands, whose, late)


def _caption_of_one_share(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    return _caption(root, fixture, "shard=0/2")


def _slurm_gen(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    def commands(place: Path) -> list[list[str]]:
        words = ["slurm-gen", "cluster=laptop_test", "cluster.nodes=2", "run=micro", "curriculum=none",
                 f"out={place / 'jobs'}"]  # fmt: skip
        return [[*words, f"cluster.partition={name}"] for name in ("first", "second")]

    def whose(ended: Ended) -> set[int]:
        return {number for number, words in enumerate(ended.words) if main([*words, "--check"]) == 0}

    return DoubleStart(commands, whose)


def _doctor(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    write_dataset(str(root / "latents"), 8)
    sizes = (64, 128)

    def commands(place: Path) -> list[list[str]]:
        words = ["doctor", f"data={root / 'latents'}", "text_tokens_per_pack=64", f"out={place / 'report'}"]
        return [[*words, f"tokens_per_pack={tokens}"] for tokens in sizes]

    def whose(ended: Ended) -> set[int]:
        found = {path.name for path in (ended.place / "report").iterdir()}
        assert {"histograms.png", "report.json"} < found
        json.loads((ended.place / "report" / "report.json").read_bytes())
        return {0, 1}

    return DoubleStart(commands, whose)


def _preflight(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    def commands(place: Path) -> list[list[str]]:
        words = ["preflight", f"output={place / 'runs'}", f"bad_nodes={place / 'bad'}", *NO_ROOM[:2]]
        return [[*words, f"limits.output_gb={size}"] for size in ("1e12", "0")]

    def whose(ended: Ended) -> set[int]:
        assert len(list(ended.place.iterdir())) <= 2
        return {0 if len((ended.place / "bad").read_text().splitlines()) == 1 else 1}

    return DoubleStart(commands, whose, passes=(1, 0))


MAKERS: Mapping[str, Maker] = {
    "ingest": _ingest,
    "ingest from a store": _ingest_from_a_store,
    "caption": _caption,
    "caption of one share": _caption_of_one_share,
    "train-vae": _train_vae,
    "encode": _encode,
    "encode into a store": _encode_into_a_store,
    "train": _train,
    "train into a store": _train_into_a_store,
    "doctor data=": _doctor,
    "preflight": _preflight,
    "slurm-gen": _slurm_gen,
}
