"""A whole state dict, or gradients, in the names of others and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from megavideo.config.schema.model import ModelConfig
from megavideo.errors import CheckpointError
from megavideo.interop.names import Dialect, tensor_rules
from megavideo.interop.source import named
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers


def from_wan(
    state: Mapping[str, torch.Tensor], config: ModelConfig, dialect: Dialect = "diffusers"
) -> dict[str, torch.Tensor]:
    """A Wan state dict as ours. Raises CheckpointError as `check_tensors` does."""
    rules = tensor_rules(config, dialect)
    check_tensors({name: tuple(value.shape) for name, value in state.items()}, config, dialect)
    return {rule.ours: rule.to_ours([state[name] for name in rule.theirs]) for rule in rules}


def to_wan(
    state: Mapping[str, torch.Tensor], config: ModelConfig, dialect: Dialect = "diffusers"
) -> dict[str, torch.Tensor]:
    """Our whole (unsharded) state dict in Wan's names. The inverse of `from_wan`."""
    result: dict[str, torch.Tensor] = {}
    for rule in tensor_rules(config, dialect):
        parts = rule.to_theirs(state[rule.ours], config)
        result |= {name: part.contiguous() for name, part in parts.items()}
    return result


def our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's whole parameters, by name."""
    with torch.device("meta"):
        model = DiT(config, LocalLayers())
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, dialect: Dialect, place: object = "these weights"
) -> None:
    """Raise CheckpointError where Wan tensors of these shapes are not exactly those of the model.

    Tensors that are missing, that the model does not have and that are of another shape are counted, and the first
    named.
    """
    ours = our_shapes(config)
    expected: dict[str, tuple[int, ...]] = {}
    for rule in tensor_rules(config, dialect):
        theirs = rule.to_theirs(torch.empty(ours[rule.ours], device="meta"), config)
        expected |= {name: tuple(part.shape) for name, part in theirs.items()}
    wrong = {name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]}
    faults = [
        f"{what}, {named(sorted(names))}"
        for what, names in (
            ("missing", expected.keys() - shapes.keys()),
            ("unexpected", shapes.keys() - expected.keys()),
            ("of another shape", wrong),
        )
        if names
    ]
    if wrong:
        first = min(wrong)
        faults.append(f"{first!r} is {shapes[first]} in place of {expected[first]}")
    if faults:
        raise CheckpointError(
            f"{place}: not the tensors of a Wan model with layers={config.layers}, width={config.width}: "
            f"{'; '.join(faults)}. Remedy: give all files of one model, and settings of that model"
        )


def wan_config(config: ModelConfig) -> dict[str, object]:
    """Arguments with which diffusers' `WanTransformer3DModel` builds the same network."""
    return {
        "patch_size": config.patch,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.latent_channels + config.given_channels,
        "out_channels": config.latent_channels,
        "text_dim": config.text_dim,
        "freq_dim": config.time_dim,
        "ffn_dim": config.ffn,
        "num_layers": config.layers,
        "cross_attn_norm": config.cross_attn_norm,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.eps,
        "image_dim": config.image_dim,
        "added_kv_proj_dim": None if config.image_dim is None else config.width,
        "rope_max_seq_len": 1024,
    }
