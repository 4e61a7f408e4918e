"""The group `layers`: what it refuses, what it takes, and that its list of any length survives a run's config file."""

from __future__ import annotations

import pytest
from torch import nn

from megavideo.config.dump import from_yaml, to_yaml
from megavideo.config.load import load
from megavideo.config.rules.precision import fp8_candidates
from megavideo.config.schema.precision import ALWAYS_BF16, LayersConfig
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.parallel.layers.fp8 import is_excluded

FP8 = "layers=te_fp8 train.precision=bf16 "


def train_with(words: str) -> TrainRun:
    return load(TrainRun, "train", ["data.uri=latents", *words.split()])


@pytest.mark.parametrize(
    ("words", "field", "part"),
    [
        ("layers.fp8=current train.precision=bf16", "layers.fp8", "needs layers.engine=te"),
        ("layers=te_fp8", "layers.fp8", "needs train.precision=bf16, not fp32"),
        ("layers=te layers.fp8_exclude=[embed]", "layers.fp8_exclude", "no effect"),
        (FP8 + "layers.fp8_exclude=[]", "layers.fp8_exclude", "must hold embed, modulation, head"),
        (FP8 + "layers.fp8_exclude=[embed,modulation,head,blocks.9]", "layers.fp8_exclude", "no layer's name"),
        (FP8 + "layers.fp8_exclude=[embed,modulation,head,ffn.dwn]", "layers.fp8_exclude", "no layer's name"),
        (FP8 + "layers.fp8_exclude=embed", "layers.fp8_exclude", "must be [text, ...], not text"),
        (FP8 + "layers.fp8_exclude=[embed,1]", "layers.fp8_exclude[1]", "must be text"),
        (FP8 + "layers.fp8=delayed train.recompute.kind=full", "layers.fp8", "history"),
        (FP8 + "layers.fp8=e4m3", "layers.fp8", "must be one of none, current, delayed, block, mxfp8"),
        ("layers.attention=fa4", "layers.attention", "needs train.precision=bf16, not fp32"),
        (
            "layers.attention=fa2 train.precision=bf16 model.width=240 model.heads=12",
            "layers.attention",
            "width divides by 8",
        ),
        ("layers=te layers.attention=cpu train.precision=bf16", "layers.attention", "layers.engine=te on a GPU"),
        ("layers.attention=flash", "layers.attention", "must be one of auto, cpu, fa4"),
        (FP8 + "data.tokens_per_pack=2056", "data.tokens_per_pack", "divide by 16"),
        (FP8 + "data.text_tokens_per_pack=1000", "data.text_tokens_per_pack", "divide by 16"),
        (FP8 + "model.ffn=1000", "model.ffn", "divide by 16 on each of 1 tensor-parallel ranks"),
        (FP8 + "model.ffn=1040 layout=tp2-zero1", "model.ffn", "divide by 16 on each of 2 tensor-parallel ranks"),
        (FP8 + "data.tokens_per_pack=2064 layout=tp2-sp-zero1", "data.tokens_per_pack", "each of 2 ranks"),
    ],
)
def test_refused(words: str, field: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_with(words)
    assert caught.value.field == field
    assert part in caught.value.rule
    assert caught.value.remedy


@pytest.mark.parametrize(
    "words",
    [
        "layers=te train.precision=bf16",
        "layers=te layers.attention=fa4 train.precision=bf16",
        "layers.attention=stand_in",
        FP8,
        FP8 + "layers.fp8=delayed",
        FP8 + "train.recompute.kind=full",
        FP8 + "layers.fp8_exclude=[embed,modulation,head,blocks.3,cross_attention.kv,ffn]",
        FP8 + "data.tokens_per_pack=2064",
        FP8 + "run=wan_14b data=pack_75k",
        FP8 + "run=wan_1b layout=tp4-sp-zero1",
    ],
)
def test_accepted(words: str) -> None:
    train_with(words)


def test_local_layers_are_the_default() -> None:
    assert train_with("").layers == LayersConfig(engine="local", fp8="none", fp8_exclude=ALWAYS_BF16)


def test_list_of_any_length_survives_the_config_file() -> None:
    cfg = train_with(FP8 + "layers.fp8_exclude=[embed,modulation,head,blocks.0,blocks.3]")
    assert cfg.layers.fp8_exclude == (*ALWAYS_BF16, "blocks.0", "blocks.3")
    assert from_yaml(TrainRun, to_yaml(cfg)) == cfg


@pytest.mark.parametrize("modulation", ["adaln", "adaln_zero"])
def test_every_linear_layer_is_a_candidate_or_always_bf16(modulation: str) -> None:
    config = train_with(f"model=micro model.modulation={modulation} model.fps_conditioning=true").model
    model = DiT(config, LocalLayers())
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    candidates = [name for name in names if not is_excluded(name, ALWAYS_BF16)]
    assert sorted(candidates) == sorted(fp8_candidates(config.layers))
