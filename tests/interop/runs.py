"""Small runs that Wan's network can express, as training leaves them, and their export by the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.cli.main import main
from megavideo.config.schema.train import TrainRun
from megavideo.encoders.folder import save_encoders
from megavideo.encoders.image_encoder import build_image_encoder
from megavideo.encoders.text.transformers_text import build_transformers_text
from megavideo.encoders.video.loaded import build_loaded
from megavideo.testing.dataset import CHANNELS
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config
from tests.encoders.tiny_models import make_clip_vision, make_text, make_wan, strengthen

WAN = {
    "data__uri": "gone",
    "model__layers": 2,
    "model__width": 48,
    "model__heads": 4,
    "model__ffn": 64,
    "model__time_dim": 16,
}


def wan_run(folder: Path, seed: int = 0, **settings: Any) -> TrainRun:
    """The settings of a run in `folder`, called `run`, with one checkpoint."""
    config = micro_config(name="run", output=folder, optim__ema_decay=0.9, **{**WAN, **settings})
    write_run(config, seed=seed)
    return config


def export(words: list[str], capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The report of an export that succeeds."""
    capfd.readouterr()
    assert main(["export", *words, "--json"]) == 0
    report: dict[str, Any] = json.loads(capfd.readouterr().out)
    return report


def with_wan_encoders(run: Path, weights: Path, *, strong: bool = False, image_dim: int | None = None) -> None:
    """Give a run an autoencoder of Wan's and UMT5, tiny and random, saved by their own libraries as in a pipeline.

    With `image_dim` there is a CLIP too, and the text is padded, as diffusers wants it beside an image.
    """
    video = make_wan(weights / "vae", z_dim=CHANNELS)
    autoencoder = build_loaded("wan", str(strengthen(video) if strong else video), "fp32", _clips)
    make_text(weights / "text_encoder")
    (weights / "tokenizer").mkdir()
    for path in (weights / "text_encoder").glob("*token*"):
        path.rename(weights / "tokenizer" / path.name)
    image_encoder = None if image_dim is None else build_image_encoder(str(make_clip_vision(weights, image_dim)))
    text_encoder = build_transformers_text(str(weights / "text_encoder"), 24, None if image_dim is None else 512)
    save_encoders(run / "encoders", autoencoder, text_encoder, image_encoder)


def _clips(most: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(min(most, 2)):
        yield torch.rand(3, 5, 32, 32, generator=generator) * 2 - 1
