"""Starting weights: a function of (seed, parameter name) alone, so that every layout starts from the same model."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that belongs to one parameter."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def initial_value(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """The whole (unsharded) start value of a parameter, float32.

    Xavier-uniform matrices, normal 0.02 for embedders of time and text, zero for what closes the network and, under
    adaLN-zero, for the per-block projections (as in Wan and DiT).
    """
    generator = parameter_generator(seed, name)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "modulation_table":
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    if ".lora." in name:  # adapters begin as nothing: A as in PEFT (Kaiming uniform with a = sqrt(5)), B at zero
        bound = shape[1] ** -0.5
        return torch.zeros(shape) if leaf == "B" else torch.empty(shape).uniform_(-bound, bound, generator=generator)
    if "norm" in name:
        return torch.ones(shape) if leaf == "weight" else torch.zeros(shape)
    if leaf == "bias" or name.startswith("head.") or ".modulation." in name and name.startswith("blocks."):
        return torch.zeros(shape)
    if name.startswith(("embed.time.", "embed.text.", "embed.fps.")):
        return torch.empty(shape).normal_(0.0, 0.02, generator=generator)
    # a fused QKV is three square matrices, each with its own fan-out
    fan_out = shape[0] // 3 if ".qkv." in name else shape[0] // 2 if name.endswith("kv.weight") else shape[0]
    bound = (6.0 / (fan_out + shape[1])) ** 0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Fill a model whose parameters are whole on this rank."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_value(name, parameter.shape, seed))
