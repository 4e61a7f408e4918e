"""Cross-field rules of `megavideo caption`, and of the expansion of prompts in `megavideo sample`."""

from __future__ import annotations

from urllib.parse import urlsplit

from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.captions import CaptionRun, EndpointConfig
from megavideo.config.schema.sample import SampleRun
from megavideo.errors import ConfigError

_OF_SERVER = ("model", "key_variable", "timeout_seconds", "attempts", "backoff_seconds")


def caption_reads_and_writes_folders(cfg: CaptionRun) -> None:
    """Clips and captions are local; `out` is no folder of clips or of another command."""
    for name in ("src", "out"):
        value = getattr(cfg, name)
        if "://" in value:
            remedy = (
                "copy the clips of the store to a folder, and ingest that" if name == "src" else "take a local folder"
            )
            raise ConfigError(name, value, "must be a path, not an address", remedy)
    if cfg.src.rstrip("/") == cfg.out.rstrip("/"):
        raise ConfigError("out", cfg.out, "must differ from src", "name another folder")


def every_prompt_has_a_weight(cfg: CaptionRun) -> None:
    """Each prompt gives one caption, drawn by its weight."""
    prompts, weights = cfg.captioner.prompts, cfg.captioner.weights
    if not prompts:
        raise ConfigError("captioner.prompts", [], "must hold at least one", "say what the model shall write")
    if len(prompts) != len(weights):
        rule = f"must hold as many values as captioner.prompts, which is {len(prompts)}"
        raise ConfigError("captioner.weights", list(weights), rule, "give each prompt its weight")


def frames_are_shown_to_who_looks(cfg: CaptionRun) -> None:
    """`vlm` looks at frames, `expand` at text alone; a server is sent images."""
    captioner = cfg.captioner
    for name in ("frames", "frames_as", "longest_side"):
        value = getattr(captioner, name)
        if captioner.kind == "vlm" and value is None:
            raise ConfigError(f"captioner.{name}", None, "captioner.kind=vlm needs it", f"add captioner.{name}=VALUE")
        if captioner.kind == "expand" and value is not None:
            rule = "has no effect with captioner.kind=expand, which reads text alone"
            raise ConfigError(f"captioner.{name}", value, rule, "drop it, or take captioner=vlm")
    if captioner.endpoint.url is not None and captioner.frames_as == "video":
        rule = "a server is sent images"
        raise ConfigError("captioner.frames_as", "video", rule, "take captioner.frames_as=images, or captioner.path")


def captioner_has_one_model(cfg: CaptionRun) -> None:
    """The captioner's model is in a folder or behind a server."""
    _one_model("captioner", cfg.captioner.path, cfg.captioner.endpoint)


def expansion_has_a_model(cfg: SampleRun) -> None:
    """Expansion asks one model; without expansion there is none."""
    expand = cfg.expand
    if expand.kind == "none":
        rule, remedy = "has no effect with expand.kind=none", "add expand=language_model, or drop it"
        refuse_set("expand", expand, ("path", "prompt", "max_new_tokens"), rule, remedy)
        refuse_set("expand.endpoint", expand.endpoint, ("url", *_OF_SERVER), rule, remedy)
        return
    if expand.prompt is None:
        raise ConfigError(
            "expand.prompt", None, "expand.kind=language_model needs it", "say what the model shall do with a prompt"
        )
    _one_model("expand", expand.path, expand.endpoint)


def _one_model(section: str, path: str | None, endpoint: EndpointConfig) -> None:
    place = f"{section}.endpoint"
    if (path is None) == (endpoint.url is None):
        rule = f"the model is either there or behind {place}.url, and {'neither' if path is None else 'both'} is given"
        raise ConfigError(
            f"{section}.path", path, rule, f"give {section}.path=FOLDER, or {place}.url=URL and {place}.model=NAME"
        )
    if endpoint.url is None:
        remedy = f"drop it, or add {place}.url=URL"
        refuse_set(place, endpoint, _OF_SERVER, f"has no effect without {place}.url", remedy)
        return
    if endpoint.model is None:
        raise ConfigError(f"{place}.model", None, f"{place}.url needs it", f"add {place}.model=NAME")
    _plain_address(f"{place}.url", endpoint.url)


def _plain_address(field: str, url: str) -> None:
    """An http address; one that holds a password was refused before, and what may be one is not shown."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    except ValueError:  # brackets that hold no address
        whole = False
    if not whole:
        rule = "must be the base address of a server"
        raise ConfigError(field, None if "@" in url else url, rule, f"write {field}=http://HOST:PORT/v1")


CAPTION_RULES = (
    caption_reads_and_writes_folders,
    every_prompt_has_a_weight,
    captioner_has_one_model,
    frames_are_shown_to_who_looks,
)
EXPAND_RULES = (expansion_has_a_model,)
