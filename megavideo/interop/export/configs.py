"""The config.json of a transformer, for diffusers and for the original Wan code; and models that have none."""

from __future__ import annotations

import diffusers

from megavideo.config.schema.model import ModelConfig
from megavideo.errors import ConfigError
from megavideo.interop.weights import wan_config

_TEXT_TOKENS = 512  # to which Wan pads
# width, layers, heads, feed-forward, channels of those that `from_single_file` takes for what they are
_KNOWN = ((1536, 30, 12, 8960, 16), (5120, 40, 40, 13824, 16))


def check_expressible(config: ModelConfig) -> None:
    """Raise ConfigError, which names the setting, for a model that `WanTransformer3DModel` cannot be."""
    for name, value, needed, lacks in (
        ("modulation", config.modulation, "adaln", "no projection of the timestep in each block"),
        ("place_embedding", config.place_embedding, False, "no embedding of places"),
        ("fps_conditioning", config.fps_conditioning, False, "no input for the frame rate"),
        ("qk_norm", config.qk_norm, True, "no attention without normalised queries and keys"),
    ):
        if value != needed:
            raise ConfigError(
                f"model.{name}",
                value,
                f"no format= can express this run: WanTransformer3DModel has {lacks}",
                "`megavideo checkpoint reshard` writes its weights in megavideo's own format; to export, train with "
                f"model.{name}={str(needed).lower()}",
            )


def diffusers_config(config: ModelConfig) -> dict[str, object]:
    """That of `WanTransformer3DModel`."""
    return {**_head("WanTransformer3DModel"), **wan_config(config), "pos_embed_seq_len": None}


def original_config(config: ModelConfig) -> dict[str, object]:
    """That of `WanModel` of the original code."""
    return {
        **_head("WanModel"),
        "model_type": "i2v" if config.given_channels else "t2v",
        "patch_size": config.patch,
        "text_len": _TEXT_TOKENS,
        "in_dim": config.latent_channels + config.given_channels,
        "dim": config.width,
        "ffn_dim": config.ffn,
        "freq_dim": config.time_dim,
        "text_dim": config.text_dim,
        "out_dim": config.latent_channels,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "qk_norm": True,
        "cross_attn_norm": config.cross_attn_norm,
        "eps": config.eps,
    }


def _head(class_name: str) -> dict[str, object]:
    return {"_class_name": class_name, "_diffusers_version": diffusers.__version__}


def single_file_notes(config: ModelConfig) -> tuple[str, ...]:
    """What `from_single_file` has to be told of a model in the original names: it knows two by their width."""
    if (config.width, config.layers, config.heads, config.ffn, config.latent_channels) in _KNOWN:
        return ()
    return (
        f"from_single_file needs config= for this model of width {config.width}, which it would take for another: give "
        "it a folder with the config.json of format=transformer",
    )
