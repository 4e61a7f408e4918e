"""Tiny random transformers and pipelines of Wan, made on the spot by the classes of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file

from megavideo.config.schema.model import ModelConfig
from megavideo.interop.weights import to_wan, wan_config
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from tests.encoders.tiny_models import make_clip_vision, make_text, make_wan, strengthen

CHANNELS, TEXT_DIM = 8, 32
SMALL = ModelConfig(
    layers=2, width=48, ffn=64, heads=2, latent_channels=CHANNELS, text_dim=TEXT_DIM, time_dim=16
)  # fmt: skip
# the scheduler that Wan's pipelines come with
SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}


def transformer(config: ModelConfig = SMALL, seed: int = 0, **changes: Any) -> Any:
    """A model of diffusers in which every parameter is random, norms and tables included."""
    torch.manual_seed(seed)
    model = WanTransformer3DModel(**{**wan_config(config), **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    return model.eval()


def save_pipeline(
    folder: Path, config: ModelConfig = SMALL, kind: type = WanPipeline, boundary: float | None = None
) -> Any:
    """Save a whole pipeline, of two transformers where a `boundary` is given; what it is made of."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    text = make_text(folder / "made_text")
    video = make_wan(folder / "made_video", latents_mean=[0.1] * CHANNELS, latents_std=[1.3] * CHANNELS)
    if kind is not WanPipeline:
        strengthen(video)
    pictures = {} if config.image_dim is None else image_parts(folder / "made_image", config.image_dim)
    pipeline: Any = kind(
        tokenizer=AutoTokenizer.from_pretrained(text),
        text_encoder=UMT5EncoderModel.from_pretrained(text),
        vae=AutoencoderKLWan.from_pretrained(video),
        transformer=transformer(config),
        scheduler=UniPCMultistepScheduler(**SCHEDULER),
        transformer_2=None if boundary is None else transformer(config, seed=1),
        boundary_ratio=boundary,
        **pictures,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline


def image_parts(folder: Path, width: int) -> dict[str, Any]:
    """The parts of a pipeline that is told the embedding of an image."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    make_clip_vision(folder, width)
    return {
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder"),
        "image_processor": CLIPImageProcessor.from_pretrained(folder / "image_processor"),
    }


def random_state(config: ModelConfig, seed: int = 7) -> dict[str, torch.Tensor]:
    """Weights of ours, all random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DiT(config, LocalLayers()).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def original(config: ModelConfig = SMALL) -> dict[str, torch.Tensor]:
    """Weights in the names of the original code."""
    return to_wan(random_state(config), config, "wan")


def save(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write one file of tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def save_sharded(folder: Path, tensors: Mapping[str, torch.Tensor], num_files: int = 3) -> Path:
    """Write tensors over several files with an index, as large models are published."""
    names = sorted(tensors)
    files = {name: f"model-{number % num_files + 1:05d}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save(folder / file, {name: tensors[name] for name in names if files[name] == file})
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def save_original_config(folder: Path, config: ModelConfig = SMALL, **changes: object) -> None:
    """The config.json of the original code."""
    told = {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": config.width, "eps": config.eps,
        "ffn_dim": config.ffn, "freq_dim": config.time_dim, "model_type": "t2v",
        "in_dim": config.latent_channels + config.given_channels,
        "num_heads": config.heads, "num_layers": config.layers, "out_dim": config.latent_channels, "text_len": 512,
        **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))
