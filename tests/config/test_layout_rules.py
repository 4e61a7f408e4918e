"""Rules of the layout: each refusal names the field, the rule and the legal values, and the legal values are legal."""

from __future__ import annotations

import pytest

from megavideo.config.layout import parse_layout
from megavideo.config.load import load
from megavideo.config.rules.layout import check_fp8_alignment
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError

# 4 layers, width 256, feed-forward 1024, 4 heads, packs of 2,048 tokens, 2 packs a step, fp32
SMALL = ["data.uri=latents"]


def load_small(words: str) -> TrainRun:
    """The preset `small` with overrides."""
    return load(TrainRun, "train", [*SMALL, *words.split()])


TOKENS, PACKS = "data.tokens_per_pack", "train.packs_per_step"
REFUSED = [
    ("layout=tp8", "layout", "tp8 must divide model.heads=4", "take tp1, tp2, tp4, or"),
    ("layout=tp3-zero1", "layout", "tp3 must divide model.heads=4", "tp1, tp2, tp4"),
    ("layout=tp4 model.ffn=1022", "layout", "tp4 must divide model.ffn=1022", "take tp1, tp2, or change model.ffn"),
    ("layout=cp8-ulysses", "layout", "deals the 4 heads", "cp8-ring, which takes any number of heads, or cp8-2d or ul"),
    ("layout=tp2-cp4-ulysses", "layout", "deals the 2 heads", "ulysses with cp from: 2"),
    ("layout=cp2-2d", "layout", "cp2 = u * r, both > 1", "cp2-ring"),
    ("layout=tp4-cp4-2d", "layout", "dividing the 1 heads", "none above 1"),
    ("layout=cp3-ring", TOKENS, "must divide by cp = 3 of layout='cp3-ring'", "=2046 or 2049"),
    ("layout=tp2-sp data.tokens_per_pack=2047", TOKENS, "cp * tp = 2 (sp shares", "=2046 or 2048"),
    ("layout=tp4-sp-cp2-ring data.tokens_per_pack=2044", TOKENS, "cp * tp = 8", "=2040 or 2048"),
    ("layout=cp64-ring data.tokens_per_pack=40", TOKENS, "cp = 64", "take data.tokens_per_pack=64"),
    ("layout=pp5", "layout", "has 5 stages, each of which needs a block", "take pp4 or less, or model.layers=5"),
    ("layout=pp2 model.layers=1", "layout", "has 2 stages", "take no pp, or model.layers=2"),
    ("layout=pp3-dualpipev", "layout", "has 6 stages", "take pp2 or less, or drop dualpipev, or model.layers=6"),
    ("layout=pp5-dualpipev", "layout", "has 10 stages", "take pp2 or less, or model.layers=10"),
    ("layout=dp3-zero1", PACKS, "must divide by dp=3", "=3"),
    ("layout=pp2-dualpipev", PACKS, "2 * pp = 4 packs or more on each of dp=1", "=4 or more, or drop dualpipev"),
    ("layout=pp2-dualpipev-dp2 train.packs_per_step=6", PACKS, "on each of dp=2 ranks", "=8 or more"),
    ("layout=pp2-zero2", "layout", "zero0 and zero1, not zero2", "take zero1 or zero0"),
    ("layout=pp2-dp2-zero3", "layout", "not zero3", "take zero1 or zero0, or no pp"),
    ("layout=zero0 train.precision=bf16", "layout", "fp32 weights", "zero1"),
    ("layout=dp2 train.precision=bf16", "layout", "fp32 weights", "train.precision=fp32"),
    ("layout=tp2-pp2-zero0 train.precision=bf16", "layout", "fp32 weights", "zero1"),
]

ACCEPTED = [
    "layout=dp2-zero1",
    "layout=dp2 train.packs_per_step=4",
    "layout=zero0 train.precision=fp32",
    "layout=zero1 train.precision=bf16",
    "layout=zero1-offload",
    "layout=dp2-zero2-offload",
    "layout=dp2-zero3",
    "layout=tp4-zero1",
    "layout=tp2 model.ffn=1022",
    "layout=tp2-sp",
    "layout=tp2 data.tokens_per_pack=2047",  # without sp every tensor-parallel rank holds all tokens
    "layout=cp2-ring",
    "layout=cp8-ring",  # more ranks than heads
    "layout=cp4-ulysses",
    "layout=tp2-cp2-ulysses",
    "layout=cp4-2d",
    "layout=cp3-ring data.tokens_per_pack=2046",
    "layout=cp3-ring data.tokens_per_pack=2049",
    "layout=tp4-sp-cp2-ring data.tokens_per_pack=2040",
    "layout=pp2",
    "layout=pp4-zero1 train.precision=bf16",
    "layout=pp2-dp2 train.packs_per_step=2",  # one micro batch: slow, and right
    "layout=pp2-dualpipev train.packs_per_step=4",
    "layout=pp2-dualpipev-dp2 train.packs_per_step=8",
    "layout=tp2-sp-cp2-ring-pp2-dualpipev-dp2-zero1-offload train.packs_per_step=8",
]


@pytest.mark.parametrize(("words", "field", "rule", "remedy"), REFUSED)
def test_refused(words: str, field: str, rule: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_small(words)
    assert caught.value.field == field
    assert rule in caught.value.rule
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("words", ACCEPTED)
def test_accepted(words: str) -> None:
    load_small(words)


def test_fp8_takes_whole_sixteens_of_tokens_on_each_rank() -> None:
    check_fp8_alignment(2048, parse_layout("tp4-sp-cp8-ring"))
    check_fp8_alignment(2048 + 16, parse_layout("tp4"))
    with pytest.raises(ConfigError, match=r"data\.tokens_per_pack=2032 or 2048") as caught:
        check_fp8_alignment(2040, parse_layout("zero1"))
    assert caught.value.field == TOKENS
    with pytest.raises(ConfigError, match="=32256 or 32768"):
        check_fp8_alignment(32760, parse_layout("tp4-sp-cp8-ring"))
    with pytest.raises(ConfigError, match=r"take data\.tokens_per_pack=64"):
        check_fp8_alignment(40, parse_layout("cp4-ring"))
