"""The model of the settings: in a folder, or behind a server."""

from __future__ import annotations

from megavideo.config.schema.captions import CaptionerConfig, EndpointConfig
from megavideo.encoders.captioner.answer import AnsweringModel
from megavideo.encoders.captioner.endpoint import EndpointModel
from megavideo.encoders.captioner.local import LocalModel


def build_captioner(cfg: CaptionerConfig) -> AnsweringModel:
    """The model of `megavideo caption`. Raises ConfigError where it cannot be used."""
    if cfg.endpoint.url is not None:
        return EndpointModel("captioner", cfg.endpoint, cfg.max_new_tokens, cfg.batch)
    return LocalModel("captioner", cfg.path, cfg.max_new_tokens, cfg.frames_as)


def build_language_model(
    section: str, path: str | None, endpoint: EndpointConfig, max_new_tokens: int, concurrency: int
) -> AnsweringModel:
    """A model of text alone, set by the settings under `section`. Raises ConfigError where it cannot be used."""
    if endpoint.url is not None:
        return EndpointModel(section, endpoint, max_new_tokens, concurrency)
    return LocalModel(section, path, max_new_tokens, None)
