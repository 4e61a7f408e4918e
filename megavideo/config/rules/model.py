"""Cross-field rules of the model's shape."""

from __future__ import annotations

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def rotary_split(head_dim: int) -> tuple[int, int, int]:
    """Head width given to the rotary position of time, height and width, as Wan splits it.

    Height and width take 2 * (head_dim // 6) each, time takes the rest (Wan 2.1, `WanRotaryPosEmbed`).
    """
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def width_divides_by_heads(cfg: TrainRun) -> None:
    """Every head has the same width."""
    model: ModelConfig = cfg.model
    if model.width % model.heads:
        legal = [heads for heads in range(1, min(model.width, 64) + 1) if model.width % heads == 0]
        near = sorted(sorted(legal, key=lambda heads: abs(heads - model.heads))[:3])
        remedy = f"take model.heads from {', '.join(map(str, near))}, or change model.width"
        raise ConfigError("model.heads", model.heads, f"must divide model.width={model.width}", remedy)


def head_serves_rotary_position(cfg: TrainRun) -> None:
    """Time, height and width each rotate pairs of numbers: each of the three shares is even and positive."""
    model = cfg.model
    if model.width % model.heads:
        return
    head_dim = model.head_dim
    if head_dim < 6 or any(share < 2 or share % 2 for share in rotary_split(head_dim)):
        rule = f"gives a head width of {head_dim}, and 3D rotary position needs an even one of at least 6"
        raise ConfigError("model.heads", model.heads, rule, "change model.heads or model.width, as 64 or 128 a head")


def patch_is_positive(cfg: TrainRun) -> None:
    """A patch covers at least one latent point along each axis."""
    if min(cfg.model.patch) < 1:
        raise ConfigError("model.patch", list(cfg.model.patch), "every entry must be >= 1", "take model.patch=[1,2,2]")


def time_dim_is_even(cfg: TrainRun) -> None:
    """The timestep embedding is made of sine and cosine pairs."""
    if cfg.model.time_dim % 2:
        remedy = f"take model.time_dim={cfg.model.time_dim + 1}"
        raise ConfigError("model.time_dim", cfg.model.time_dim, "must be even", remedy)


def given_channels_fit(cfg: TrainRun) -> None:
    """Further input channels hold a mask and latents of a first frame, and perhaps a last: so Wan lays them out."""
    model, conditions = cfg.model, cfg.diffusion.conditions
    if model.given_channels == 0:
        return
    field, number = "model.given_channels", model.given_channels
    if number <= model.latent_channels:
        rule = f"must hold a mask besides model.latent_channels={model.latent_channels}"
        raise ConfigError(field, number, rule, f"take {field}={model.latent_channels + 4}, as Wan has them")
    for name in ("extension", "inpainting"):
        if getattr(conditions, name) > 0:
            rule = f"is not among what {field}={number} can tell, which are a first frame and a last"
            remedy = f"add diffusion.conditions.{name}=0"
            raise ConfigError(f"diffusion.conditions.{name}", getattr(conditions, name), rule, remedy)
    if not (conditions.image_to_video or conditions.interpolation) and cfg.stage is None and not cfg.stages:
        rule = "has no effect with diffusion.conditions.image_to_video=0"
        raise ConfigError(field, number, rule, "add diffusion.conditions.image_to_video=1, or drop it")


def image_embedding_fits(cfg: TrainRun) -> None:
    """The embedding is of a first frame that further channels tell too, and its rows divide as FP8 does not want."""
    field, width, conditions = "model.image_dim", cfg.model.image_dim, cfg.diffusion.conditions
    if width is None:
        return
    if not cfg.model.given_channels:
        rule = "is of the first frame, of which model.given_channels=0 tells nothing"
        raise ConfigError(field, width, rule, f"take model.given_channels={cfg.model.latent_channels + 4} besides")
    if conditions.interpolation > 0:
        rule = f"gives a last frame too, and {field}={width} is of one image"
        raise ConfigError(
            "diffusion.conditions.interpolation", conditions.interpolation, rule,
            "add diffusion.conditions.interpolation=0",
        )  # fmt: skip
    if cfg.layers.fp8 != "none":
        rule = "cannot be in FP8, as the rows of an image's embedding do not divide by 16"
        raise ConfigError("layers.fp8", cfg.layers.fp8, rule, f"take layers.fp8=none, or a model without {field}")


MODEL_RULES = (
    width_divides_by_heads,
    head_serves_rotary_position,
    patch_is_positive,
    time_dim_is_even,
    given_channels_fit,
    image_embedding_fits,
)
