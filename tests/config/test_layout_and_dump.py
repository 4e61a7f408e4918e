"""Layouts and resolved configs survive being written and read."""

from __future__ import annotations

import pytest

from megavideo.config.dump import from_yaml, to_yaml
from megavideo.config.find import configs_folder, group_options
from megavideo.config.layout import Layout, parse_layout, ulysses_degree
from megavideo.config.load import load
from megavideo.config.schema.prepare import EncodeRun
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("zero1", Layout(zero=1)),
        ("dp2", Layout(dp=2)),
        ("dp1-zero0", Layout(dp=1)),
        ("zero3-dp4", Layout(dp=4, zero=3)),
        ("cp4-2d-zero1", Layout(cp=4, cp_kind="2d", zero=1)),
        ("tp2-sp-cp2-ring-pp2-dp2-zero1", Layout(tp=2, sp=True, cp=2, cp_kind="ring", pp=2, dp=2, zero=1)),
        ("dualpipev-pp2", Layout(pp=2, pp_schedule="dualpipev")),
        ("offload-zero2", Layout(zero=2, offload=True)),
        (
            "tp2-sp-cp2-ring-pp2-dualpipev-dp2-zero1-offload",
            Layout(2, True, 2, "ring", 2, 2, 1, pp_schedule="dualpipev", offload=True),
        ),
    ],
)
def test_layout_round_trip(text: str, layout: Layout) -> None:
    assert parse_layout(text) == layout
    assert parse_layout(layout.format()) == layout


def test_canonical_text_is_kept() -> None:
    every_word = "tp2-sp-cp2-ring-pp2-dualpipev-dp2-zero1-offload"
    for text in (every_word, "tp2-sp-cp2-ring-pp2-dp2-zero1", "tp8-cp2-ulysses-zero0", "dp2-zero1"):
        assert parse_layout(text).format() == text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "''"),
        ("dp2--zero1", "''"),
        ("zer1", "'zer1'"),
        ("dp", "'dp'"),
        ("dp-2", "'dp'"),
        ("dp0", "'dp0'"),
        ("zero4", "'zero4'"),
        ("dp2-dp4", "'dp4'"),
        ("sp-sp-tp2", "'sp'"),
        ("cp2-ring-ulysses", "'ulysses'"),
        ("sp", "'sp'"),
        ("ring", "'ring'"),
        ("cp2", "'cp2'"),
        ("DP2", "'DP2'"),
        ("dualpipev-zero1", "'dualpipev' has no effect without pipeline parallel"),
        ("pp1-dualpipev", "'dualpipev' has no effect without pipeline parallel"),
        ("pp2-dualpipev-dualpipev", "'dualpipev'"),
        ("offload", "'offload' has no effect without ZeRO"),
        ("dp2-zero0-offload", "'offload' has no effect without ZeRO"),
        ("1f1b", "'1f1b'"),
    ],
)
def test_nonsense_is_named(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layout(text)
    assert caught.value.field == "layout"
    assert part in caught.value.rule


def test_misspelt_word_gets_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layout("pp2-dualpipe")
    assert "dualpipev" in caught.value.remedy


def test_a_model_is_held_by_tp_cp_and_pp() -> None:
    assert parse_layout("tp2-cp3-ring-pp5-dp7").model_size == 30
    assert parse_layout("dp4-zero3").model_size == 1


@pytest.mark.parametrize(
    ("text", "heads", "degree"),
    [
        ("tp2-zero1", 12, 1),
        ("cp8-ring", 12, 1),
        ("cp4-ulysses", 12, 4),
        ("tp3-cp4-ulysses", 12, 4),
        ("cp4-2d", 12, 2),
        ("cp8-2d", 12, 4),
        ("tp2-cp8-2d", 12, 2),
        ("cp8-2d", 40, 4),
        ("cp6-2d", 6, 3),
        ("cp12-2d", 12, 6),
    ],
)
def test_ulysses_degree(text: str, heads: int, degree: int) -> None:
    assert ulysses_degree(parse_layout(text), heads) == degree


@pytest.mark.parametrize(
    ("text", "heads", "rule", "remedy"),
    [
        ("cp8-ulysses", 12, "12 heads", "take cp8-ring, which takes any number of heads, or cp8-2d or ulysses"),
        ("tp2-cp4-ulysses", 12, "6 heads", "from: 2, 3, 6"),
        ("tp4-cp2-ulysses", 4, "1 heads", "none above 1"),
        ("cp2-2d", 12, "cp2 = u * r, both > 1", "cp2-ring"),
        ("tp4-cp4-2d", 12, "3 heads", "a cp with such a u: 3"),
    ],
)
def test_heads_that_cannot_be_dealt(text: str, heads: int, rule: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ulysses_degree(parse_layout(text), heads)
    assert caught.value.field == "layout"
    assert rule in caught.value.rule
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("preset", group_options(configs_folder({}), "run"))
def test_dump_round_trip(preset: str) -> None:
    cfg = load(TrainRun, "train", [f"run={preset}", "init_from=weights", "data.uri='s3://a/b: c'", "name='7'"])
    assert from_yaml(TrainRun, to_yaml(cfg)) == cfg


def test_dump_of_another_schema() -> None:
    cfg = load(EncodeRun, "encode", ["src=a", "out=b"])
    assert from_yaml(EncodeRun, to_yaml(cfg)) == cfg


@pytest.mark.parametrize("text", ["", "- 1", "name: [", "name: a\n"])
def test_damaged_dump_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        from_yaml(TrainRun, text, "runs/a/config.yaml")


def test_dump_is_held_to_the_rules() -> None:
    text = to_yaml(load(TrainRun, "train", ["data.uri=a"])).replace("heads: 4", "heads: 3")
    with pytest.raises(ConfigError, match=r"model\.heads"):
        from_yaml(TrainRun, text)


def test_a_word_of_any_length_makes_a_short_message() -> None:
    with pytest.raises(ConfigError, match="is no word of a layout") as caught:
        parse_layout("z" * 10_000)
    assert len(str(caught.value)) < 4000
