"""Tiny pretrained folders made on the spot: a Wan autoencoder, and T5 encoders with a word tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch


def make_wan(folder: Path, **settings: object) -> Path:
    """Save an untrained AutoencoderKLWan of 8 channels."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    config = {"base_dim": 16, "z_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1} | settings
    AutoencoderKLWan(**config).save_pretrained(folder)
    return folder


def strengthen(folder: Path) -> Path:
    """Have an AutoencoderKLWan's latents follow its pictures and those before; untrained they follow its biases."""
    from diffusers import AutoencoderKLWan

    model = AutoencoderKLWan.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim >= 4:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    return folder


def make_clip_vision(folder: Path, width: int = 20) -> Path:
    """Save an untrained CLIPVisionModel whose embeddings have five rows, and its processor beside it, as a pipeline."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = CLIPVisionModel(config)
    with torch.no_grad():  # untrained ones hardly look at the picture
        for name, parameter in model.named_parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 and "position" not in name else 1.0)
    model.save_pretrained(folder / "image_encoder")
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(folder / "image_processor")
    return folder


def make_family(folder: Path, kind: str) -> Path:
    """Save an untrained autoencoder of one of the families, about as small as its class allows."""
    import diffusers

    from megavideo.encoders.families import FAMILIES

    narrow = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    one_layer = (1, 1, 1, 1, 1)
    config: dict[str, dict[str, object]] = {
        "wan": {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
        "hunyuan_video": narrow,
        "cogvideox": narrow,
        "ltx": {
            "latent_channels": 4,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": one_layer,
            "decoder_layers_per_block": one_layer,
        },
    }
    torch.manual_seed(0)
    getattr(diffusers, FAMILIES[kind].class_name)(**config[kind]).save_pretrained(folder)
    return folder


def make_text(folder: Path, kind: str = "umt5", with_end: bool = True) -> Path:
    """Save an untrained T5 or UMT5 encoder of width 32 with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "square", "circle", "moves", "right"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if with_end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config_class, model_class = (T5Config, T5EncoderModel) if kind == "t5" else (UMT5Config, UMT5EncoderModel)
    config = config_class(vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    model_class(config).save_pretrained(folder)
    return folder
