"""Prompts rewritten by a language model before they are encoded, so that they read like the captions of training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from megavideo.config.schema.captions import ExpandConfig
from megavideo.encoders.captioner.answer import Request, instructed
from megavideo.encoders.captioner.build import build_language_model
from megavideo.errors import DataError, ServerUnavailable

_BATCH = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt as the user gave it, and the text that was sampled with."""

    given: str
    used: str


def expand_prompts(cfg: ExpandConfig, prompts: Sequence[str]) -> tuple[SampledPrompt, ...]:
    """The prompts in their order, with what a language model makes of them, or as they are with kind `none`.

    The same prompt is asked once. The empty prompt stays empty. The model is gone from memory when this returns.
    Raises ConfigError where the model cannot be used, ServerUnavailable where its server does not answer, and
    DataError, naming the prompt, where there is no answer to it.
    """
    if cfg.kind == "none" or cfg.prompt is None:
        return tuple(SampledPrompt(prompt, prompt) for prompt in prompts)
    model = build_language_model("expand", cfg.path, cfg.endpoint, cfg.max_new_tokens, _BATCH)
    asked = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip()]
    used = {prompt: prompt for prompt in prompts}
    for begin in range(0, len(asked), _BATCH):
        some = asked[begin : begin + _BATCH]
        outcomes = model.answer([Request(instructed(cfg.prompt, prompt)) for prompt in some])
        for prompt, outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, DataError):
                raise _not_expanded(prompt, outcome) from outcome
            if outcome.cut:
                _log.warning("expansion of %r met expand.max_new_tokens=%d", prompt, cfg.max_new_tokens)
            _log.info("prompt %r is sampled as %r", prompt, outcome.text)
            used[prompt] = outcome.text
    return tuple(SampledPrompt(prompt, used[prompt]) for prompt in prompts)


def _not_expanded(prompt: str, reason: DataError) -> DataError:
    text = f"prompt {prompt!r}: it cannot be expanded: {reason}. Remedy: "
    if isinstance(reason, ServerUnavailable):
        return ServerUnavailable(f"{text}look at the server and run the same command again, or take expand=none")
    return DataError(f"{text}change it, or take expand=none")
