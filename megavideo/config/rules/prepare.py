"""Cross-field rules of `megavideo ingest` and `megavideo encode`."""

from __future__ import annotations

from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.errors import ConfigError

SPACE_RATIO = 8


def ingest_reads_and_writes_folders(cfg: IngestRun) -> None:
    """Clips are read from and listed in folders; only encoded latents go to a store."""
    for name in ("src", "out"):
        value = getattr(cfg, name)
        if "://" in value:
            raise ConfigError(
                name, value, "must be a path, not an address", "take a local folder; encode writes to s3://"
            )


def encode_reads_folder(cfg: EncodeRun) -> None:
    """Clips are read from a folder, and latents go to a folder or an S3 prefix."""
    if "://" in cfg.src:
        raise ConfigError("src", cfg.src, "must be a path, not an address", "copy the clips to a local folder")
    if "://" in cfg.out and not cfg.out.startswith("s3://"):
        raise ConfigError("out", cfg.out, "must be a folder or an s3:// prefix", "take s3://BUCKET/PREFIX or a path")


def encode_does_not_write_into_src(cfg: EncodeRun) -> None:
    """A dataset overwritten later must not take the clips with it."""
    if cfg.src.rstrip("/") == cfg.out.rstrip("/"):
        raise ConfigError("out", cfg.out, "must differ from src", "name another folder")


def encode_patch_is_positive(cfg: EncodeRun) -> None:
    """A patch covers at least one latent point along each axis."""
    if min(cfg.patch) < 1:
        raise ConfigError("patch", list(cfg.patch), "every entry must be >= 1", "take patch=[1,2,2]")


def area_holds_a_patch(cfg: EncodeRun) -> None:
    """The smallest clip is one patch of latents, each of 8 x 8 pixels."""
    least = cfg.patch[1] * cfg.patch[2] * SPACE_RATIO**2
    if cfg.area < least:
        rule = f"one patch of {list(cfg.patch)} covers {least} pixels"
        raise ConfigError("area", cfg.area, rule, f"take area={least} or more")


def autoencoder_settings_fit(cfg: EncodeRun) -> None:
    """`pca` has channels and fit_clips; `wan` has path and precision."""
    autoencoder = cfg.autoencoder
    if autoencoder.kind == "pca":
        _needed("autoencoder", autoencoder, ("channels", "fit_clips"))
        _idle("autoencoder", autoencoder, ("path",))
        if autoencoder.precision != "fp32":
            rule = "has no effect with autoencoder.kind=pca"
            raise ConfigError("autoencoder.precision", autoencoder.precision, rule, "take autoencoder.precision=fp32")
    else:
        _needed("autoencoder", autoencoder, ("path",))
        _idle("autoencoder", autoencoder, ("channels", "fit_clips"))


def text_encoder_settings_fit(cfg: EncodeRun) -> None:
    """`bytes` has dim; `transformers` has path."""
    encoder = cfg.text_encoder
    needed, idle = (("dim",), ("path",)) if encoder.kind == "bytes" else (("path",), ("dim",))
    _needed("text_encoder", encoder, needed)
    _idle("text_encoder", encoder, idle)


def _needed(group: str, section: object, names: tuple[str, ...]) -> None:
    kind = getattr(section, "kind", None)
    for name in names:
        if getattr(section, name) is None:
            raise ConfigError(f"{group}.{name}", None, f"{group}.kind={kind} needs it", f"add {group}.{name}=VALUE")


def _idle(group: str, section: object, names: tuple[str, ...]) -> None:
    kind = getattr(section, "kind", None)
    for name in names:
        value = getattr(section, name)
        if value is not None:
            rule = f"has no effect with {group}.kind={kind}"
            raise ConfigError(f"{group}.{name}", value, rule, f"drop it, or choose the {group} it belongs to")


INGEST_RULES = (ingest_reads_and_writes_folders,)
ENCODE_RULES = (
    encode_reads_folder,
    encode_does_not_write_into_src,
    encode_patch_is_positive,
    area_holds_a_patch,
    autoencoder_settings_fit,
    text_encoder_settings_fit,
)
