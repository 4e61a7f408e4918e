"""Tiny models that score pictures, made on the spot with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.encoders.tiny_captioners import word_tokenizer

SIDE = 32
LABELS = {0: "Safe", 1: "Other", 2: "Marked"}
_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_clip(folder: Path, seed: int = 0, kind: str = "clip") -> Path:
    """Save a CLIP or SigLIP of embeddings of 24 or 32 numbers, with image processor and tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 16
    text: dict[str, Any] = {**_LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 1}
    text |= {"projection_size": 32} if kind == "siglip" else {}
    vision = {**_LAYERS, "image_size": SIDE, "patch_size": 8}
    size = {"height": SIDE, "width": SIDE}
    torch.manual_seed(seed)
    if kind == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        CLIPModel(config).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
        tokenizer.add_special_tokens({"bos_token": "</s>"})
    else:
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        SiglipImageProcessor(size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_classifier(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Save a ViT that tells `LABELS` apart."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(seed)
    vision = {**_LAYERS, "image_size": SIDE, "patch_size": 8}
    config = ViTConfig(**vision, id2label=LABELS, label2id={v: k for k, v in LABELS.items()}, **settings)
    model = ViTForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def make_segmenter(folder: Path) -> Path:
    """Save a Segformer that tells `LABELS` apart at every fourth pixel."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8,
        id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def make_detector(folder: Path) -> Path:
    """Save a YOLOS that finds boxes of `LABELS`."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    config = YolosConfig(
        **_LAYERS, image_size=[SIDE, SIDE], patch_size=8, num_detection_tokens=6,
        id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    model = YolosForObjectDetection(config)
    for layers in (model.class_labels_classifier, model.bbox_predictor):
        for layer in layers.layers:
            torch.nn.init.normal_(layer.weight, std=0.5)
    model.save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE}).save_pretrained(folder)
    return folder


def make_head(path: Path, width: int, sizes: tuple[int, ...] = (8, 1)) -> Path:
    """Save a head of linear layers, numbered with a gap as where dropout stood between them."""
    torch.manual_seed(1)
    tensors = {}
    for number, (before, after) in enumerate(zip((width, *sizes), sizes, strict=False)):
        tensors[f"layers.{7 * number}.weight"] = torch.randn(after, before)
        tensors[f"layers.{7 * number}.bias"] = torch.randn(after)
    save_file(tensors, path)
    return path
