"""Names and shapes of diffusers' `WanTransformer3DModel`, to and from ours, so that either loads in the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from megavideo.config.schema.model import ModelConfig
from megavideo.errors import CheckpointError

_EMBED = {
    "embed.time.fc1": "condition_embedder.time_embedder.linear_1",
    "embed.time.fc2": "condition_embedder.time_embedder.linear_2",
    "embed.modulation": "condition_embedder.time_proj",
    "embed.text.fc1": "condition_embedder.text_embedder.linear_1",
    "embed.text.fc2": "condition_embedder.text_embedder.linear_2",
    "head.proj": "proj_out",
}
_BLOCK = {
    "self_attention.out": "attn1.to_out.0",
    "cross_attention.q": "attn2.to_q",
    "cross_attention.out": "attn2.to_out.0",
    "ffn.up": "ffn.net.0.proj",
    "ffn.down": "ffn.net.2",
}
_NORMS = {
    "self_attention.q_norm.weight": "attn1.norm_q.weight",
    "self_attention.k_norm.weight": "attn1.norm_k.weight",
    "cross_attention.q_norm.weight": "attn2.norm_q.weight",
    "cross_attention.k_norm.weight": "attn2.norm_k.weight",
}
_FUSED = {
    "self_attention.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attention.kv": ("attn2.to_k", "attn2.to_v"),
}


def name_pairs(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter name -> the diffusers names whose rows it stacks.

    Raises CheckpointError for a model that diffusers' Wan cannot express.
    """
    if config.modulation != "adaln" or config.fps_conditioning or config.place_embedding or not config.qk_norm:
        raise CheckpointError(
            "only models with model.modulation=adaln, model.qk_norm=true, model.fps_conditioning=false and "
            "model.place_embedding=false have the form of WanTransformer3DModel; this one has "
            f"model.modulation={config.modulation}, model.qk_norm={config.qk_norm}, "
            f"model.fps_conditioning={config.fps_conditioning}, model.place_embedding={config.place_embedding}. "
            "Remedy: keep such a model in megavideo's own format"
        )
    pairs: dict[str, tuple[str, ...]] = {"head.modulation_table": ("scale_shift_table",)}
    for leaf in ("weight", "bias"):
        pairs[f"embed.patch.{leaf}"] = (f"patch_embedding.{leaf}",)
        pairs |= {f"{ours}.{leaf}": (f"{theirs}.{leaf}",) for ours, theirs in _EMBED.items()}
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"blocks.{i}."
        pairs[f"{ours}modulation_table"] = (f"{theirs}scale_shift_table",)
        pairs |= {f"{ours}{a}": (f"{theirs}{b}",) for a, b in _NORMS.items()}
        for leaf in ("weight", "bias"):
            pairs |= {f"{ours}{a}.{leaf}": (f"{theirs}{b}.{leaf}",) for a, b in _BLOCK.items()}
            pairs |= {f"{ours}{a}.{leaf}": tuple(f"{theirs}{b}.{leaf}" for b in bs) for a, bs in _FUSED.items()}
            if config.cross_attn_norm:
                pairs[f"{ours}cross_norm.{leaf}"] = (f"{theirs}norm2.{leaf}",)
    return pairs


def from_wan(state: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """A diffusers state dict as ours. Raises CheckpointError naming the first missing tensor."""
    result = {}
    for ours, theirs in name_pairs(config).items():
        missing = [name for name in theirs if name not in state]
        if missing:
            raise CheckpointError(f"tensor {missing[0]!r} is missing: these are not the weights of such a Wan model")
        parts = [state[name] for name in theirs]
        if ours == "embed.patch.weight":
            # convolution [D, C, pt, ph, pw] -> linear over tokens ordered (pt, ph, pw, C), as the head writes them
            parts = [parts[0].permute(0, 2, 3, 4, 1).flatten(1)]
        elif ours.endswith("modulation_table"):
            parts = [parts[0][0]]
        result[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return result


def to_wan(state: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Our whole (unsharded) state dict as diffusers'. The inverse of `from_wan`; serves gradients as well."""
    result = {}
    for ours, theirs in name_pairs(config).items():
        tensor = state[ours]
        if ours == "embed.patch.weight":
            tensor = tensor.unflatten(1, (*config.patch, config.latent_channels)).permute(0, 4, 1, 2, 3)
        elif ours.endswith("modulation_table"):
            tensor = tensor[None]
        for name, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            result[name] = part.contiguous()
    return result


def wan_config(config: ModelConfig) -> dict[str, object]:
    """Arguments with which `WanTransformer3DModel` builds the same network."""
    return {
        "patch_size": config.patch,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "text_dim": config.text_dim,
        "freq_dim": config.time_dim,
        "ffn_dim": config.ffn,
        "num_layers": config.layers,
        "cross_attn_norm": config.cross_attn_norm,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.eps,
        "rope_max_seq_len": 1024,
    }
