"""Names and forms of Wan's tensors, as diffusers and as the original code have them, beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from megavideo.config.schema.model import ModelConfig
from megavideo.errors import CheckpointError

Dialect = Literal["diffusers", "wan"]
DIALECTS: tuple[Dialect, ...] = ("diffusers", "wan")
PATCH_EMBEDDING = "patch_embedding"
Form = Literal["same", "patch", "table"]


@dataclass(frozen=True)
class TensorRule:
    """One of our parameters and the tensors of others whose rows it stacks.

    `form` tells how a tensor lies elsewhere: "patch" as a convolution [D, C, pt, ph, pw] in place of our matrix over
    tokens ordered (pt, ph, pw, C), as the head writes them, where C has the given channels behind the latent ones;
    "table" with a leading axis of one.
    """

    ours: str
    theirs: tuple[str, ...]
    form: Form = "same"

    def to_theirs(self, tensor: torch.Tensor, config: ModelConfig) -> dict[str, torch.Tensor]:
        """Our whole tensor as theirs, by name; views where the form allows."""
        if self.form == "patch":
            tensor = tensor.unflatten(1, (*config.patch, -1)).permute(0, 4, 1, 2, 3)
        elif self.form == "table":
            tensor = tensor[None]
        return dict(zip(self.theirs, tensor.chunk(len(self.theirs)), strict=True))

    def to_ours(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Their tensors, in the order of `theirs`, as ours. The inverse of `to_theirs`."""
        if self.form == "patch":
            return parts[0].permute(0, 2, 3, 4, 1).flatten(1)
        if self.form == "table":
            return parts[0][0]
        return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class _Names:
    """One dialect: their names of our modules, without `weight` or `bias`, and of our tables.

    `image` and `block_image` are those of models with an image embedding, `image_norm` its norm of keys.
    """

    embed: dict[str, str]
    block: dict[str, tuple[str, ...]]
    cross_norm: str
    norms: dict[str, str]
    block_table: str
    head_table: str
    image: dict[str, str]
    block_image: dict[str, tuple[str, ...]]
    image_norm: str


_DIALECTS: dict[Dialect, _Names] = {
    "diffusers": _Names(
        embed={
            "embed.time.fc1": "condition_embedder.time_embedder.linear_1",
            "embed.time.fc2": "condition_embedder.time_embedder.linear_2",
            "embed.modulation": "condition_embedder.time_proj",
            "embed.text.fc1": "condition_embedder.text_embedder.linear_1",
            "embed.text.fc2": "condition_embedder.text_embedder.linear_2",
            "head.proj": "proj_out",
        },
        block={
            "self_attention.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            "self_attention.out": ("attn1.to_out.0",),
            "cross_attention.q": ("attn2.to_q",),
            "cross_attention.kv": ("attn2.to_k", "attn2.to_v"),
            "cross_attention.out": ("attn2.to_out.0",),
            "ffn.up": ("ffn.net.0.proj",),
            "ffn.down": ("ffn.net.2",),
        },
        cross_norm="norm2",
        norms={
            "self_attention.q_norm": "attn1.norm_q",
            "self_attention.k_norm": "attn1.norm_k",
            "cross_attention.q_norm": "attn2.norm_q",
            "cross_attention.k_norm": "attn2.norm_k",
        },
        block_table="scale_shift_table",
        head_table="scale_shift_table",
        image={
            "embed.image.norm1": "condition_embedder.image_embedder.norm1",
            "embed.image.fc1": "condition_embedder.image_embedder.ff.net.0.proj",
            "embed.image.fc2": "condition_embedder.image_embedder.ff.net.2",
            "embed.image.norm2": "condition_embedder.image_embedder.norm2",
        },
        block_image={"cross_attention.image_kv": ("attn2.add_k_proj", "attn2.add_v_proj")},
        image_norm="attn2.norm_added_k",
    ),
    "wan": _Names(
        embed={
            "embed.time.fc1": "time_embedding.0",
            "embed.time.fc2": "time_embedding.2",
            "embed.modulation": "time_projection.1",
            "embed.text.fc1": "text_embedding.0",
            "embed.text.fc2": "text_embedding.2",
            "head.proj": "head.head",
        },
        block={
            "self_attention.qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
            "self_attention.out": ("self_attn.o",),
            "cross_attention.q": ("cross_attn.q",),
            "cross_attention.kv": ("cross_attn.k", "cross_attn.v"),
            "cross_attention.out": ("cross_attn.o",),
            "ffn.up": ("ffn.0",),
            "ffn.down": ("ffn.2",),
        },
        cross_norm="norm3",  # diffusers gives this name to the norm before the feed-forward
        norms={
            "self_attention.q_norm": "self_attn.norm_q",
            "self_attention.k_norm": "self_attn.norm_k",
            "cross_attention.q_norm": "cross_attn.norm_q",
            "cross_attention.k_norm": "cross_attn.norm_k",
        },
        block_table="modulation",
        head_table="head.modulation",
        image={
            "embed.image.norm1": "img_emb.proj.0",
            "embed.image.fc1": "img_emb.proj.1",
            "embed.image.fc2": "img_emb.proj.3",
            "embed.image.norm2": "img_emb.proj.4",
        },
        block_image={"cross_attention.image_kv": ("cross_attn.k_img", "cross_attn.v_img")},
        image_norm="cross_attn.norm_k_img",
    ),
}


def tensor_rules(config: ModelConfig, dialect: Dialect = "diffusers") -> tuple[TensorRule, ...]:
    """A rule for each parameter of the model, in its order.

    Raises CheckpointError for a model that Wan's network cannot express.
    """
    _check_expressible(config)
    names = _DIALECTS[dialect]
    has_image = config.image_dim is not None
    embed = names.embed | (names.image if has_image else {})
    block = names.block | (names.block_image if has_image else {})
    norms = names.norms | ({"cross_attention.image_k_norm": names.image_norm} if has_image else {})
    rules = [TensorRule(f"embed.patch.{leaf}", (f"{PATCH_EMBEDDING}.{leaf}",), _PATCH[leaf]) for leaf in _LEAVES]
    rules += [TensorRule(f"{a}.{leaf}", (f"{b}.{leaf}",)) for a, b in embed.items() for leaf in _LEAVES]
    for number in range(config.layers):
        at = f"blocks.{number}."
        rules.append(TensorRule(f"{at}modulation_table", (f"{at}{names.block_table}",), "table"))
        rules += [TensorRule(f"{at}{a}.weight", (f"{at}{b}.weight",)) for a, b in norms.items()]
        for leaf in _LEAVES:
            rules += [TensorRule(f"{at}{a}.{leaf}", tuple(f"{at}{b}.{leaf}" for b in bs)) for a, bs in block.items()]
            if config.cross_attn_norm:
                rules.append(TensorRule(f"{at}cross_norm.{leaf}", (f"{at}{names.cross_norm}.{leaf}",)))
    rules.append(TensorRule("head.modulation_table", (names.head_table,), "table"))
    return tuple(rules)


def weight_name(dialect: Dialect, module: str) -> str:
    """Their name of the weight of one of our modules, as `embed.time.fc1` or `blocks.0.ffn.up` of one tensor."""
    names = _DIALECTS[dialect]
    inner = module.removeprefix("blocks.0.")
    blocks = names.norms | {"cross_norm": names.cross_norm} | {a: bs[0] for a, bs in names.block.items()}
    named = f"blocks.0.{blocks[inner]}" if inner != module else (names.embed | names.image)[module]
    return f"{named}.weight"


_LEAVES = ("weight", "bias")
_PATCH: dict[str, Form] = {"weight": "patch", "bias": "same"}


def _check_expressible(config: ModelConfig) -> None:
    if config.modulation != "adaln" or config.fps_conditioning or config.place_embedding or not config.qk_norm:
        raise CheckpointError(
            "only models with model.modulation=adaln, model.qk_norm=true, model.fps_conditioning=false and "
            "model.place_embedding=false have the form of WanTransformer3DModel; this one has "
            f"model.modulation={config.modulation}, model.qk_norm={config.qk_norm}, "
            f"model.fps_conditioning={config.fps_conditioning}, model.place_embedding={config.place_embedding}. "
            "Remedy: keep such a model in megavideo's own format"
        )
