"""The loss of the demo's task under Muon beside AdamW, each at several learning rates, after the same steps.

    python tools/bench/muon_beside_adamw.py OUT [--steps 300] [--rates 1e-3,3e-3,1e-2] [--clips 240] [SETTING=VALUE ...]

Renders the demo's corpus into OUT, trains `run=demo` once for each optimizer and rate, with the further settings, and
writes OUT/losses.json and OUT/losses.png. All runs see the same packs and noise. The score of a run is the mean loss of
its last tenth of steps; an optimizer is tuned where its best rate is not at an end of the list. A run that OUT already
has is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.config.load import load
from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.data.ingest import ingest
from megavideo.encoders.encode.run import encode
from megavideo.evaluation.shapes.corpus import render_corpus
from megavideo.evaluation.shapes.render import AREA_PIXELS, CLIP_FRAMES
from megavideo.observe.metrics import read_metrics
from megavideo.observe.plot import smooth

OPTIMIZERS = {"adamw": "optim=small", "muon": "optim=muon"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2")
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("settings", nargs="*")
    given = parser.parse_intermixed_args()
    prepare(given.out, given.clips)
    losses = {
        (name, rate): train(given.out, name, rate, given.steps, given.settings)
        for rate in given.rates.split(",")
        for name in OPTIMIZERS
    }
    last = max(1, given.steps // 10)
    scores = {key: sum(values[-last:]) / last for key, values in losses.items()}
    table = [
        {"optimizer": name, "rate": float(rate), "loss": scores[name, rate], "losses": losses[name, rate]}
        for name, rate in losses
    ]
    settings = ["run=demo", *given.settings]
    (given.out / "losses.json").write_text(json.dumps({"steps": given.steps, "settings": settings, "runs": table}))
    draw(given.out / "losses.png", losses, scores)
    for (name, rate), score in scores.items():
        print(f"{name:<6} {rate:>6}  {score:.4f}")


def prepare(out: Path, clips: int) -> None:
    """The demo's latents, but for fewer clips."""
    if (out / "latents" / "dataset.json").exists():
        return
    render_corpus(out / "corpus", clips, clips // 10, 0)
    ingest(load(IngestRun, "ingest", [f"src={out / 'corpus'}", f"out={out / 'clips'}"]))
    settings = [f"src={out / 'clips'}", f"out={out / 'latents'}", f"area={AREA_PIXELS}"]
    encode(load(EncodeRun, "encode", [*settings, f"max_frames={max(CLIP_FRAMES)}"]))


def train(out: Path, name: str, rate: str, steps: int, settings: list[str]) -> list[float]:
    """The loss of each step of one run; a process of its own."""
    folder = f"{name}-{rate}"
    words = [
        "run=demo", OPTIMIZERS[name], f'name="{folder}"', f"output={out.resolve()}", f"data.uri={out / 'latents'}",
        f"optim.lr={rate}", f"train.steps={steps}", f"checkpoint.every={steps}", *settings,
    ]  # fmt: skip
    metrics = out / folder / "metrics.jsonl"
    if not (metrics.exists() and len(read_metrics(metrics)) >= steps):
        subprocess.run([sys.executable, "-m", "megavideo", "train", *words], env=os.environ, check=True)
    return [float(row["loss"]) for row in read_metrics(metrics)[:steps]]


def draw(png: Path, losses: dict[tuple[str, str], list[float]], scores: dict[tuple[str, str], float]) -> None:
    """Smoothed curves, a colour for each optimizer; its best rate is drawn heavier."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    colours, styles = {"adamw": "#1f4e96", "muon": "#b0652a"}, ["-", "--", ":", "-."]
    rates = list(dict.fromkeys(rate for _, rate in losses))
    for (name, rate), values in losses.items():
        best = scores[name, rate] == min(score for (other, _), score in scores.items() if other == name)
        curve = smooth(np.array(values), half_life=max(len(values) / 60, 1.0))
        axes.plot(
            range(1, len(values) + 1), curve, color=colours[name], linestyle=styles[rates.index(rate) % len(styles)],
            linewidth=2.2 if best else 1.0, label=f"{name} {rate}: {scores[name, rate]:.4f}",
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (smoothed)", yscale="log")
    axes.grid(color="#e3e6ea", which="both")
    axes.legend(frameon=False, title="optimizer, rate: mean loss of the last tenth")
    figure.savefig(png, dpi=130)


if __name__ == "__main__":
    main()
