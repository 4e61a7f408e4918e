"""`megavideo lora`: adapters in the names of other tools, merged into their base, or taken from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb, Words
from megavideo.config.schema.lora_verb import LoraVerbRun
from megavideo.errors import ConfigError

_WORDS = Words("ACTION PLACE", "export RUN|CHECKPOINT, merge RUN|CHECKPOINT or load FILE")
_ACTIONS = ("export", "merge", "load")


def _run(cfg: LoraVerbRun, texts: Texts) -> Any:
    from megavideo.data.storage.owners import Claim, owning
    from megavideo.interop.adapter_run import export_adapter, load_adapter, merge_adapter

    action, place = _words(texts.get(_WORDS.metavar, ()))
    _check_settings(cfg, action)
    out = Path(cfg.out)
    with owning(out, Claim(f"lora {action}", "out= another folder")):
        if action == "export":
            return export_adapter(place, out, cfg.weights)
        if action == "merge":
            return merge_adapter(place, cfg.base, out)
        assert cfg.base is not None
        return load_adapter(place, cfg.base, out)


def _words(words: Sequence[str]) -> tuple[str, Path]:
    if len(words) != 2 or words[0] not in _ACTIONS:
        rule = f"must be one of {', '.join(_ACTIONS)}, and one place"
        raise ConfigError(_WORDS.metavar, " ".join(words) or None, rule, "write megavideo lora export RUN out=FOLDER")
    return words[0], Path(words[1])


def _check_settings(cfg: LoraVerbRun, action: str) -> None:
    if action == "load" and cfg.base is None:
        raise ConfigError("base", None, "is required by load", "give the run or checkpoint that the adapters are for")
    if action == "export" and cfg.base is not None:
        raise ConfigError("base", cfg.base, "has no effect on export", "drop it, or take merge or load")
    if action != "export" and cfg.weights != "ema":
        raise ConfigError("weights", cfg.weights, f"has no effect on {action}", "drop it, or take export")


VERB = Verb(
    name="lora",
    summary="export adapters as diffusers loads them, merge them into their base, or take those of other tools",
    primary="lora_verb",
    schema=LoraVerbRun,
    run=_run,
    describe=describe_fields,
    words=_WORDS,
    examples=(
        "megavideo lora export runs/adapted out=adapters",
        "megavideo lora merge runs/adapted out=runs/merged",
        "megavideo lora load adapters/pytorch_lora_weights.safetensors base=runs/small out=runs/loaded",
    ),
)
