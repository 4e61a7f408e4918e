"""Which dialect tensors are named in, and the model that their shapes and a config.json tell of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megavideo.config.schema.model import ModelConfig
from megavideo.errors import CheckpointError, ConfigError
from megavideo.interop.names import DIALECTS, PATCH_EMBEDDING, Dialect, weight_name
from megavideo.interop.source import KNOWN, named
from megavideo.interop.weights import wan_config

Shapes = Mapping[str, tuple[int, ...]]
HEAD_DIM = 128  # of every Wan that was published
_TIME = "embed.time.fc1"
_BLOCK = re.compile(r"blocks\.(\d+)\.")
# what tensors are called in models that are often taken for a Wan transformer
_OTHERS = (
    (re.compile(r"\.lora_(?:A|B|down|up)\.|^lora_unet_"), "a LoRA adapter, which goes on top of a model"),
    (re.compile(r"^vace_(?:blocks|patch)"), "Wan VACE, whose further blocks are not known here"),
    (re.compile(r"^double_blocks\.|^single_blocks\."), "HunyuanVideo or FLUX"),
    (re.compile(r"^transformer_blocks\."), "CogVideoX, LTX or another transformer"),
    (re.compile(r"(?:^|\.)(?:encoder|decoder)\.(?:conv|down|up|mid|middle)"), "an autoencoder"),
    (re.compile(r"(?:^|\.)(?:down_blocks|input_blocks)\."), "a UNet"),
    (re.compile(r"^(?:encoder\.block|shared|token_embedding)\."), "a text encoder"),
)
_PLACES_OF_TWO_IMAGES = ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos")
# keys of config.json that the shapes do not tell of, and the values with which a model is ours
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "pos_embed_seq_len": (None,),
    "text_len": (512,),
    "window_size": ([-1, -1],),
    "model_type": ("t2v", "i2v", "ti2v"),
}
# the original code's names of what diffusers' config.json has
_ORIGINAL = {
    "ffn_dim": "ffn_dim", "freq_dim": "freq_dim", "in_dim": "in_channels", "out_dim": "out_channels", "eps": "eps",
    "num_heads": "num_attention_heads", "num_layers": "num_layers", "text_dim": "text_dim",
    "patch_size": "patch_size", "cross_attn_norm": "cross_attn_norm",
}  # fmt: skip


def detect_dialect(shapes: Shapes, place: object) -> Dialect:
    """The dialect of a transformer's tensors. Raises CheckpointError, with a guess at what it is, where it is none."""
    if f"{PATCH_EMBEDDING}.weight" in shapes:
        for dialect in DIALECTS:
            if weight_name(dialect, _TIME) in shapes and not any(name.startswith("vace_") for name in shapes):
                return dialect
    names = sorted(shapes)
    guess = next((kind for form, kind in _OTHERS if any(form.search(name) for name in names)), None)
    what = "not a Wan transformer" + (f" but, by its tensors, {guess}" if guess else "")
    raise CheckpointError(f"{place}: {what} ({named(names, 3)}); {KNOWN}. Remedy: give one of these")


def derive_model(
    shapes: Shapes, dialect: Dialect, config: Mapping[str, Any] | None, heads: int | None, place: object
) -> ModelConfig:
    """The model of tensors of these shapes.

    Heads are those of `config` (a config.json), else `heads`, else one for each 128 of the width, as in every Wan. What
    config.json says is compared with the shapes. Raises CheckpointError where both do not fit, or a tensor that tells
    of the model is missing or of no such shape; ConfigError where `heads` are not those of config.json or needed.
    """
    _check_places(shapes, place)
    told = config or {}
    width, time_dim = _matrix(shapes, weight_name(dialect, _TIME), place)
    _, text_dim = _matrix(shapes, weight_name(dialect, "embed.text.fc1"), place)
    ffn, _ = _matrix(shapes, weight_name(dialect, "blocks.0.ffn.up"), place)
    out, _ = _matrix(shapes, weight_name(dialect, "head.proj"), place)
    in_channels, patch = _patch(shapes, place)
    out_channels = out // (patch[0] * patch[1] * patch[2])
    image = weight_name(dialect, "embed.image.fc1")
    model = ModelConfig(
        layers=len({found[1] for found in map(_BLOCK.match, shapes) if found}),
        width=width,
        ffn=ffn,
        heads=_heads(told.get("num_attention_heads", told.get("num_heads")), heads, width),
        latent_channels=out_channels,
        given_channels=max(0, in_channels - out_channels),
        image_dim=_matrix(shapes, image, place)[1] if image in shapes else None,
        text_dim=text_dim,
        patch=patch,
        time_dim=time_dim,
        cross_attn_norm=weight_name(dialect, "blocks.0.cross_norm") in shapes,
        qk_norm=weight_name(dialect, "blocks.0.self_attention.q_norm") in shapes,
        eps=_eps(told.get("eps", 1e-6), place),
    )
    _check_config(model, told, place)
    return model


def _check_places(shapes: Shapes, place: object) -> None:
    """Raise CheckpointError for Wan 2.1's models of a first and a last frame, which tell the two images' rows apart."""
    for name in _PLACES_OF_TWO_IMAGES:
        if name in shapes:
            raise CheckpointError(
                f"{place}: has {name!r}, which only Wan 2.1's models of a first and a last frame (FLF2V) have, and "
                "these are not known here. Remedy: take one of image to video"
            )


def _matrix(shapes: Shapes, name: str, place: object) -> tuple[int, int]:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"{place}: tensor {name!r} is missing. Remedy: give all files of the model")
    if len(shape) != 2:
        raise CheckpointError(f"{place}: tensor {name!r} is {shape}, and a matrix is needed. Remedy: {_WHOLE}")
    return shape[0], shape[1]


def _patch(shapes: Shapes, place: object) -> tuple[int, tuple[int, int, int]]:
    """Input channels and patch of the patch embedding."""
    name = f"{PATCH_EMBEDDING}.weight"
    shape = shapes[name]
    if len(shape) == 5:
        return shape[1], (shape[2], shape[3], shape[4])
    raise CheckpointError(
        f"{place}: tensor {name!r} is {shape}, and a convolution [width, channels, 1, 2, 2] is needed: a matrix does "
        "not tell whether channels or places in the patch come first. Remedy: have the program that wrote it save the "
        "convolution"
    )


def _heads(said: Any, asked: int | None, width: int) -> int:
    if said is not None:
        if asked not in (None, said):
            raise ConfigError("heads", asked, f"config.json says {said}", "leave it out")
        if not isinstance(said, int) or said < 1 or width % said:
            raise CheckpointError(f"config.json: {said!r} heads do not divide a width of {width}. Remedy: {_WHOLE}")
        return said
    if asked is None and width % HEAD_DIM:
        rule = f"cannot be known from shapes: the width of {width} is no multiple of {HEAD_DIM}, Wan's width of a head"
        raise ConfigError("heads", None, rule, "add heads=NUMBER, or give the folder with its config.json")
    if asked is not None and width % asked:
        raise ConfigError(
            "heads", asked, f"must divide the width of {width}", "give the number that it was trained with"
        )
    return asked or width // HEAD_DIM


def _eps(said: Any, place: object) -> float:
    if not isinstance(said, int | float) or not 0.0 < said < 1.0:
        raise CheckpointError(f"{place}: config.json says {said!r} for eps, no small number. Remedy: {_WHOLE}")
    return float(said)


def _check_config(model: ModelConfig, told: Mapping[str, Any], place: object) -> None:
    """Raise CheckpointError where config.json says other than the tensors, or what the model does not have."""
    expected = {name: (value,) for name, value in wan_config(model).items()} | dict(_FIXED)
    if "dim" in told:
        ours = wan_config(model)
        names = {theirs: (ours[diffusers],) for theirs, diffusers in _ORIGINAL.items()}
        expected = names | dict(_FIXED) | {"dim": (model.width,), "qk_norm": (model.qk_norm,)}
    for name, value in told.items():
        # the length of a table: positions here are computed and have no limit
        is_length = name == "rope_max_seq_len" and isinstance(value, int) and value > 0
        if name.startswith("_") or is_length:
            continue
        if name not in expected and value is not None:
            raise CheckpointError(
                f"{place}: config.json says {name}={value!r}, which is not known here. Remedy: {_WHOLE}"
            )
        legal = [list(known) if isinstance(known, tuple) else known for known in expected.get(name, (None,))]
        if value not in legal:
            of = " or ".join(map(str, legal))
            raise CheckpointError(
                f"{place}: config.json says {name}={value!r}, and its tensors, or this version, want {of}. "
                f"Remedy: {_WHOLE}"
            )


_WHOLE = "give files and config.json of one and the same model"
