"""`megavideo demo`: the whole line on a corpus whose truth is known, from rendering to a measured score.

Each part is left out where an earlier start has finished it, so that a demo that was stopped goes on.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.dump import read_config, to_yaml
from megavideo.config.schema.demo import DemoRun
from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.config.schema.sample import SampleRun
from megavideo.errors import ConfigError, MegavideoError

_SETTINGS = "demo.yaml"


@dataclass(frozen=True)
class DemoReport:
    """Shares of the held-out prompts whose sample shows the colour, shape and motion asked for, and where to look."""

    prompts: int
    colour: float
    shape: float
    motion: float
    report: str
    score: str
    minutes: float


@dataclass(frozen=True)
class _Places:
    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def corpus(self) -> Path:
        return self.data / "corpus"

    @property
    def clips(self) -> Path:
        return self.data / "clips"

    @property
    def latents(self) -> Path:
        return self.data / "latents"

    @property
    def samples(self) -> Path:
        return self.root / "samples"


def _run(cfg: DemoRun, texts: Texts) -> DemoReport:
    from megavideo.data.storage.owners import Claim, owning

    del texts
    places = _Places(Path(cfg.out))
    _check_folder(cfg, places.root)
    with owning(places.data, Claim("demo", "out= another folder")):  # the root itself is the folder of its run
        return _all_parts(cfg, places)


def _all_parts(cfg: DemoRun, places: _Places) -> DemoReport:
    begin = time.monotonic()
    _claim(cfg, places.root)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        logging.getLogger(__name__).info("demo: %s", name)
        start = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - start
        return result

    if not (places.corpus / "captions.jsonl").exists():
        timed("render", lambda: _render(cfg, places))
    if not (places.latents / "dataset.json").exists():
        timed("prepare", lambda: _prepare(cfg, places))
    timed("train", lambda: _train(cfg, places))
    files, prompts = timed("sample", lambda: _sample(cfg, places))
    score = timed("measure", lambda: _measure(cfg, places, files, prompts, seconds))
    minutes = (time.monotonic() - begin) / 60
    report, record = str(places.root / "report.html"), str(places.root / "score.json")
    return DemoReport(score.prompts, score.colour, score.shape, score.motion, report, record, minutes)


def _check_folder(cfg: DemoRun, root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError("out", cfg.out, "is a file, and a folder is needed", "give out= a folder's name")


def _claim(cfg: DemoRun, root: Path) -> None:
    """Keep the settings in the demo's folder; an earlier demo with others is not mixed with this one."""
    path = root / _SETTINGS
    if path.exists():
        before = asdict(read_config(DemoRun, path))
        now = asdict(cfg)
        for name in now:
            if now[name] != before[name] and name != "out":
                raise ConfigError(
                    name, now[name], f"{root} holds a demo with {name}={before[name]!r}", "give out= another folder"
                )
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(cfg))


def _render(cfg: DemoRun, places: _Places) -> None:
    from megavideo.evaluation.shapes.corpus import render_corpus

    render_corpus(places.corpus, cfg.clips, cfg.images, cfg.seed)


def _prepare(cfg: DemoRun, places: _Places) -> None:
    from megavideo.config.load import load
    from megavideo.data.ingest import ingest
    from megavideo.encoders.encode.run import encode
    from megavideo.evaluation.shapes.render import AREA_PIXELS, CLIP_FRAMES

    ingest(load(IngestRun, "ingest", [f"src={places.corpus}", f"out={places.clips}"]))
    settings = [f"src={places.clips}", f"out={places.latents}", f"area={AREA_PIXELS}", f"max_frames={max(CLIP_FRAMES)}"]
    encode(load(EncodeRun, "encode", settings))


def training_words(cfg: DemoRun, root: Path, latents: Path) -> list[str]:
    """Words of `megavideo train` for the demo in `root`; fewer steps than the preset warms up for have less of that."""
    from megavideo.config.load import load
    from megavideo.config.schema.train import TrainRun

    warmup_steps = load(TrainRun, "train", ["run=demo", "data.uri=none"]).optim.warmup_steps
    return [
        "run=demo", f'name="{root.name}"', f"output={root.parent}", f"data.uri={latents}",
        f"train.steps={cfg.steps}", f"train.seed={cfg.seed}", f"layout=dp{cfg.processes}-zero1",
        f"optim.warmup_steps={min(warmup_steps, cfg.steps - 1)}",
    ]  # fmt: skip


def _train(cfg: DemoRun, places: _Places) -> None:
    settings = training_words(cfg, places.root.resolve(), places.latents)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cfg.processes}"]
    threads = max(1, (os.cpu_count() or 1) // cfg.processes)
    environment: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([*launcher, "-m", "megavideo", "train", *settings], env=environment, check=False)
    if done.returncode != 0:
        raise MegavideoError(f"demo: training ended with exit status {done.returncode}; its messages are above")


def _sample(cfg: DemoRun, places: _Places) -> tuple[list[Path], list[str]]:
    from megavideo.config.load import load
    from megavideo.evaluation.shapes.spec import caption, split
    from megavideo.generate.run import sample

    prompts = [caption(combination) for combination in split().held_out]
    settings = [
        f"ckpt={places.root}", f"out={places.samples}", f"seed={cfg.seed}", f"frames={cfg.frames}",
        f"height={cfg.height}", f"width={cfg.width}", f"steps={cfg.sampling_steps}", f"guidance={cfg.guidance}",
    ]  # fmt: skip
    report = sample(load(SampleRun, "sample", settings), prompts, "")
    return [Path(name) for name in report.files], prompts


def _measure(cfg: DemoRun, places: _Places, files: list[Path], prompts: list[str], seconds: dict[str, float]) -> Any:
    """Score the written files, as anyone could who has only those, and write the report."""
    from megavideo.data.clips.media import decode_frames, probe
    from megavideo.evaluation.shapes.report import ReportRow, write_report
    from megavideo.evaluation.shapes.score import score
    from megavideo.evaluation.shapes.spec import split
    from megavideo.observe.metrics import read_metrics

    videos = [decode_frames(path, 0, cfg.frames) for path in files]
    result = score(videos, split().held_out)
    rows = [
        ReportRow(prompt, video, probe(path).fps) for prompt, video, path in zip(prompts, videos, files, strict=True)
    ]
    metrics = read_metrics(places.root / "metrics.jsonl")
    losses = [row["loss"] for row in metrics if row.get("loss") is not None]
    last = losses[-max(1, min(50, len(losses) // 20)) :]
    facts = {
        "corpus": f"{cfg.clips} clips and {cfg.images} images",
        "training": f"{len(metrics)} steps on {cfg.processes} processes",
        "tokens": f"{sum(row['tokens'] for row in metrics):,}",
        "loss": f"{losses[0]:.3f} to {sum(last) / len(last):.3f}",
        "sampling": f"{cfg.sampling_steps} steps, guidance {cfg.guidance:g}",
        **{f"seconds to {name}, this start": f"{value:.0f}" for name, value in seconds.items()},
    }
    write_report(places.root, result, rows, places.root / "pictures" / "loss.png", facts)
    return result


VERB = Verb(
    name="demo",
    summary="render a small corpus, train on it, sample held-out prompts and measure what they show",
    primary="demo",
    schema=DemoRun,
    run=_run,
    describe=describe_fields,
    examples=("megavideo demo", "megavideo demo out=runs/short steps=200 clips=240"),
)
