"""Cross-field rules of `megavideo ingest` and `megavideo encode`."""

from __future__ import annotations

from megavideo.config.rules.effect import refuse_set
from megavideo.config.rules.scores import (
    ingest_score_ranges_are_not_empty,
    ingest_scores_have_what_they_need,
    scores_on,
)
from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.config.texts import parse_own_score, parse_share
from megavideo.errors import ConfigError

SPACE_RATIO = 8


def ingest_lists_in_a_folder(cfg: IngestRun) -> None:
    """Clips are read from a folder or S3, and listed in a folder."""
    if "://" in cfg.src and not cfg.src.startswith("s3://"):
        raise ConfigError("src", cfg.src, "must be a path or s3://bucket/prefix", "take a local folder, or a store")
    if "://" in cfg.out:
        rule = "must be a path, not an address"
        raise ConfigError("out", cfg.out, rule, "take a local folder; encode writes to s3://")


def ingest_shard_is_a_share(cfg: IngestRun) -> None:
    """A share is written i/n."""
    if cfg.shard is not None:
        parse_share("shard", cfg.shard)


def ingest_own_scores_are_paths(cfg: IngestRun) -> None:
    """Own scores are dotted paths whose last parts, their names, differ from each other and from the built-in ones."""
    names = {"change", "motion", "sharpness", "aesthetic", *scores_on(cfg.scores)}
    for position, text in enumerate(cfg.filters.own):
        name = parse_own_score(f"filters.own[{position}]", text).name
        if name in names:
            raise ConfigError(f"filters.own[{position}]", text, f"a score called {name} is there already", "rename it")
        names.add(name)


def ingest_ranges_are_not_empty(cfg: IngestRun) -> None:
    """A least value is at most the greatest."""
    filters = cfg.filters
    for low_name, high_name in (("min_seconds", "max_seconds"), ("min_motion", "max_motion")):
        low, high = getattr(filters, low_name), getattr(filters, high_name)
        if low is not None and high is not None and low > high:
            rule = f"no clip can be at least {low:g} and at most {high:g}"
            raise ConfigError(f"filters.{high_name}", high, rule, f"take filters.{high_name}={low:g} or more")


def ingest_cuts_where_it_is_told_how(cfg: IngestRun) -> None:
    """What makes a scene cut matters only where they are looked for."""
    if not cfg.cuts.enabled:
        rule, remedy = "has no effect with cuts.enabled=false", "add cuts.enabled=true, or drop it"
        refuse_set("cuts", cfg.cuts, ("ratio", "change", "transitions", "hole_seconds"), rule, remedy)


def encode_begins_anew_or_retries(cfg: EncodeRun) -> None:
    """What is begun anew has no earlier version with clips to try once more."""
    if cfg.overwrite and cfg.retry_dropped:
        raise ConfigError("retry_dropped", True, "has no effect with overwrite=true", "drop one of the two")


def repeats_are_limited_where_they_are_made(cfg: EncodeRun) -> None:
    """Frames are repeated only to reach a rate that is asked for."""
    if cfg.fps is None:
        refuse_set("", cfg, ("max_doubled",), "has no effect without fps", "add fps=VALUE, as fps=16, or drop it")


def encode_reads_and_writes_places(cfg: EncodeRun) -> None:
    """Clips are read from a folder or an S3 prefix, and latents go to one."""
    if "://" in cfg.src and not cfg.src.startswith("s3://"):
        raise ConfigError("src", cfg.src, "must be a path or s3://bucket/prefix", "take a local folder, or a store")
    if "://" in cfg.out and not cfg.out.startswith("s3://"):
        raise ConfigError("out", cfg.out, "must be a folder or an s3:// prefix", "take s3://BUCKET/PREFIX or a path")


def encode_shard_is_a_share(cfg: EncodeRun) -> None:
    """A share is written i/n, and one of several tasks overwrites nothing."""
    if cfg.shard is not None and parse_share("shard", cfg.shard).count > 1 and cfg.overwrite:
        rule = "a task that overwrites would delete what the other tasks write"
        raise ConfigError("overwrite", True, rule, f"drop it, or encode without shard={cfg.shard}")


def encode_does_not_write_into_src(cfg: EncodeRun) -> None:
    """A dataset overwritten later must not take the clips with it."""
    if cfg.src.rstrip("/") == cfg.out.rstrip("/"):
        raise ConfigError("out", cfg.out, "must differ from src", "name another folder")


def given_latents_are_tasks(cfg: EncodeRun) -> None:
    """Each task once, and null for none."""
    tasks = cfg.given_latents
    if tasks is not None and (not tasks or len(set(tasks)) < len(tasks)):
        rule = "names a task twice" if tasks else "names no task"
        remedy = "take given_latents=[image_to_video] or [image_to_video,interpolation], or null"
        raise ConfigError("given_latents", list(tasks), rule, remedy)


def image_encoder_is_of_a_task(cfg: EncodeRun) -> None:
    """An image's embedding tells more of a first frame, of which further channels tell."""
    path = cfg.image_encoder.path
    if path is not None and "image_to_video" not in (cfg.given_latents or ()):
        rule = "has no effect without given_latents=[image_to_video], which the same models are told"
        raise ConfigError("image_encoder.path", path, rule, "add given_latents=[image_to_video], or drop it")


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
    """`pca` has channels and fit_clips; what is loaded has path, precision and tile."""
    autoencoder = cfg.autoencoder
    if autoencoder.kind == "pca":
        _needed("autoencoder", autoencoder, ("channels", "fit_clips"))
        _idle("autoencoder", autoencoder, ("path", "tile"))
        if autoencoder.precision != "fp32":
            rule = "has no effect with autoencoder.kind=pca"
            raise ConfigError("autoencoder.precision", autoencoder.precision, rule, "take autoencoder.precision=fp32")
    else:
        _needed("autoencoder", autoencoder, ("path",))
        _idle("autoencoder", autoencoder, ("channels", "fit_clips"))


def text_encoder_settings_fit(cfg: EncodeRun) -> None:
    """`bytes` has dim; `transformers` has path."""
    encoder = cfg.text_encoder
    needed, idle = (("dim",), ("path", "pad_to")) if encoder.kind == "bytes" else (("path",), ("dim",))
    _needed("text_encoder", encoder, needed)
    _idle("text_encoder", encoder, idle)
    if encoder.pad_to is not None and encoder.pad_to < encoder.max_tokens:
        rule = f"captions of up to text_encoder.max_tokens={encoder.max_tokens} would not fit"
        remedy = f"take text_encoder.pad_to={encoder.max_tokens}, or fewer max_tokens"
        raise ConfigError("text_encoder.pad_to", encoder.pad_to, rule, remedy)


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


INGEST_RULES = (
    ingest_lists_in_a_folder,
    ingest_shard_is_a_share,
    ingest_own_scores_are_paths,
    ingest_scores_have_what_they_need,
    ingest_score_ranges_are_not_empty,
    ingest_ranges_are_not_empty,
    ingest_cuts_where_it_is_told_how,
)
ENCODE_RULES = (
    encode_reads_and_writes_places,
    encode_shard_is_a_share,
    encode_does_not_write_into_src,
    encode_begins_anew_or_retries,
    encode_patch_is_positive,
    given_latents_are_tasks,
    image_encoder_is_of_a_task,
    repeats_are_limited_where_they_are_made,
    area_holds_a_patch,
    autoencoder_settings_fit,
    text_encoder_settings_fit,
)
