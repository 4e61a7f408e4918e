"""Settings of recomputation that would not act, or name what is not there, are refused with the legal values."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megavideo.config.dump import from_yaml, to_yaml
from megavideo.config.load import load
from megavideo.config.rules import check
from megavideo.config.schema.train import RECOMPUTE_PARTS, RecomputeConfig, TrainRun
from megavideo.errors import ConfigError


def with_recompute(**settings: Any) -> TrainRun:
    """The small run (of 4 blocks) with these settings of recomputation."""
    run = load(TrainRun, "train", ["data.uri=latents"])
    return dataclasses.replace(run, train=dataclasses.replace(run.train, recompute=RecomputeConfig(**settings)))


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"kind": "selective"}, "parts", "self_attention, cross_attention, ffn, gelu"),
    ({"kind": "selective"}, "parts", "at least one part"),
    ({"parts": ("ffn",)}, "parts", "no effect with train.recompute.kind=none"),
    ({"kind": "full", "parts": ("ffn",)}, "parts", "no effect with train.recompute.kind=full"),
    ({"kind": "selective", "parts": ("ffn", "mlp")}, "parts", "'mlp', which is no part"),
    ({"kind": "selective", "parts": ("mlp",)}, "parts", "self_attention, cross_attention, ffn, gelu"),
    ({"kind": "selective", "parts": ("ffn", "ffn")}, "parts", "write train.recompute.parts=[ffn]"),
    ({"kind": "selective", "parts": ("gelu", "ffn")}, "parts", "write train.recompute.parts=[ffn]"),
    ({"layers": 2}, "layers", "no effect"),
    ({"kind": "full", "layers": 5}, "layers", "<= model.layers=4"),
    ({"offload": True}, "offload", "no effect"),
]


@pytest.mark.parametrize(("settings", "field", "words"), REFUSED)
def test_settings_without_effect_are_refused(settings: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(with_recompute(**settings))
    assert caught.value.field == f"train.recompute.{field}"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "full"},
        {"kind": "full", "layers": 4, "offload": True},
        {"kind": "selective", "parts": tuple(part for part in RECOMPUTE_PARTS if part != "gelu")},
        {"kind": "selective", "parts": ("gelu", "self_attention"), "layers": 1, "offload": True},
    ],
)
def test_settings_that_act_pass(settings: dict[str, Any]) -> None:
    check(with_recompute(**settings))


@pytest.mark.parametrize(
    ("words", "recompute"),
    [
        ("kind=none", RecomputeConfig()),
        ("kind=full layers=2 offload=true", RecomputeConfig(kind="full", layers=2, offload=True)),
        ("kind=selective parts=[ffn]", RecomputeConfig(kind="selective", parts=("ffn",))),
        (
            "kind=selective parts=[ffn,self_attention,cross_attention]",
            RecomputeConfig(kind="selective", parts=("ffn", "self_attention", "cross_attention")),
        ),
    ],
)
def test_words_of_the_command_line(words: str, recompute: RecomputeConfig) -> None:
    cfg = load(TrainRun, "train", ["data.uri=latents", *(f"train.recompute.{word}" for word in words.split())])
    assert cfg.train.recompute == recompute
    assert from_yaml(TrainRun, to_yaml(cfg)) == cfg


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("train.recompute=full", "is a group of settings"),
        ("train.recompute.parts=ffn", "must be"),
        ("train.recompute.part=[ffn]", "did you mean train.recompute.parts"),
        ("train.recompute.kind=half", "none, selective, full"),
        ("train.recompute.layers=0", ">= 1"),
    ],
)
def test_words_that_are_refused(word: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(TrainRun, "train", ["data.uri=latents", word])
