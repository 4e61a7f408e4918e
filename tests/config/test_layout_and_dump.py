"""Layouts and resolved configs survive being written and read."""

from __future__ import annotations

import pytest

from megavideo.config.dump import from_yaml, to_yaml
from megavideo.config.find import configs_folder, group_options
from megavideo.config.layout import Layout, parse_layout
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
    ],
)
def test_layout_round_trip(text: str, layout: Layout) -> None:
    assert parse_layout(text) == layout
    assert parse_layout(layout.format()) == layout


def test_canonical_text_is_kept() -> None:
    for text in ("tp2-sp-cp2-ring-pp2-dp2-zero1", "tp8-cp2-ulysses-zero0", "dp2-zero1"):
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
    ],
)
def test_nonsense_is_named(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layout(text)
    assert caught.value.field == "layout"
    assert part in caught.value.rule


@pytest.mark.parametrize("preset", group_options(configs_folder({}), "run"))
def test_dump_round_trip(preset: str) -> None:
    cfg = load(TrainRun, "train", [f"run={preset}", "data.uri='s3://a/b: c'", "name='7'"])
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
