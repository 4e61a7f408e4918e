"""The way of docs/finetuning.md: from the folder of a pipeline to one of a model that was trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image
from safetensors.torch import load_file

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.testing.launch import run
from tests.data.clip_files import moving_square, write_clip
from tests.interop.wan_files import CHANNELS, SMALL, save_pipeline, transformer

SIDE, FRAMES = 32, 9


@pytest.mark.slow
@pytest.mark.parametrize(("given_channels", "image_dim"), [(0, None), (CHANNELS + 4, None), (CHANNELS + 4, 20)])
def test_from_a_folder_of_wan_to_samples_of_a_model_trained_on(
    tmp_path: Path, given_channels: int, image_dim: int | None
) -> None:
    config = dataclasses.replace(SMALL, given_channels=given_channels, image_dim=image_dim)
    kind = WanImageToVideoPipeline if given_channels else WanPipeline
    to_encode, to_train, to_sample = [], [], []
    if given_channels:
        to_encode = ["given_latents=[image_to_video]"]
        to_train = [f"model.given_channels={given_channels}", "diffusion.conditions.image_to_video=1",
                    "diffusion.conditions.text=0"]  # fmt: skip
        to_sample = [f"image={tmp_path / 'image.png'}"]
        Image.fromarray(moving_square(1, SIDE, SIDE)[0]).save(tmp_path / "image.png")
    save_pipeline(tmp_path, config, kind)
    wan = tmp_path / "pipeline"
    if image_dim is not None:
        to_encode.append(f"image_encoder.path={wan}")
        to_train.append(f"model.image_dim={image_dim}")
    (tmp_path / "clips").mkdir()
    for number in range(3):
        clip = write_clip(tmp_path / "clips" / f"{number}.mp4", moving_square(FRAMES, SIDE, SIDE), fps=16)
        clip.with_suffix(".txt").write_text("a red square moves right")

    def megavideo(*words: object) -> str:
        done = run("megavideo", [*map(str, words), "--json"], tmp_path / "logs")
        assert done.status == 0, done.err
        return done.out

    megavideo("ingest", f"src={tmp_path / 'clips'}", f"out={tmp_path / 'listed'}", "filters=none")
    megavideo(
        "encode", f"src={tmp_path / 'listed'}", f"out={tmp_path / 'latents'}", f"area={SIDE * SIDE}",
        f"max_frames={FRAMES}", "autoencoder=wan", f"autoencoder.path={wan}", "text_encoder=wan",
        f"text_encoder.path={wan}", *to_encode,
    )  # fmt: skip
    null_text = load_file(tmp_path / "latents" / "null_text.safetensors")
    assert [tuple(tensor.shape) for tensor in null_text.values()] == [(512, 32)]
    model = {"layers": SMALL.layers, "width": SMALL.width, "ffn": SMALL.ffn, "heads": SMALL.heads, "time_dim": 16}
    model |= {"latent_channels": SMALL.latent_channels, "text_dim": SMALL.text_dim}
    megavideo(
        "train", "run=wan_finetune", f"init_from={wan}", f"data.uri={tmp_path / 'latents'}",
        f"output={tmp_path / 'runs'}",
        *(f"model.{name}={value}" for name, value in model.items()), "train.precision=fp32", "train.steps=2",
        "train.packs_per_step=1", "data.tokens_per_pack=64", "data.text_tokens_per_pack=1024", "observe.peak_tflops=1",
        "optim.warmup_steps=0", *to_train,
    )  # fmt: skip
    place = tmp_path / "runs" / "wan_finetune"
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["loss"] > 0 for row in rows)
    average = CheckpointReader(find_checkpoint(place)).whole("ema")
    begun = transformer(config).state_dict()["blocks.0.attn1.to_out.0.weight"]
    trained = average["blocks.0.self_attention.out.weight"]
    assert not torch.equal(trained, begun) and torch.allclose(trained, begun, atol=1e-4)
    megavideo(
        "sample", f"ckpt={place}", f"out={tmp_path / 'a.mp4'}", "scheduler=unipc", "steps=2", f"frames={FRAMES}",
        f"height={SIDE}", f"width={SIDE}", *to_sample, "--prompt", "a blue circle",
    )  # fmt: skip
    assert (tmp_path / "a.mp4").stat().st_size > 0
    report = json.loads(megavideo("export", f"ckpt={place}", f"out={tmp_path / 'tuned'}"))
    assert report["verify"]["fault"] is None
    pipeline: Any = kind.from_pretrained(tmp_path / "tuned")
    theirs = pipeline.transformer.state_dict()["blocks.0.attn1.to_out.0.weight"]
    assert (image_dim is None) == (getattr(pipeline, "image_encoder", None) is None)
    assert torch.equal(theirs, trained) and pipeline.scheduler.config.flow_shift == 3.0
