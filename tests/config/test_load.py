"""Overrides become a checked config, and every fault is one ConfigError that names what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megavideo.config.find import ENVIRONMENT_NAME, configs_folder, group_defaults, group_options
from megavideo.config.load import load
from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.config.schema.sample import SampleRun
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError

URI = "data.uri=latents"


def train(*overrides: str) -> TrainRun:
    return load(TrainRun, "train", [URI, *overrides])


def test_defaults_are_the_small_run() -> None:
    cfg = train()
    assert (cfg.name, cfg.output, cfg.layout) == ("small", "runs", "zero1")
    assert (cfg.model.layers, cfg.model.width, cfg.model.head_dim, cfg.model.patch_dim) == (4, 256, 64, 64)
    assert (cfg.data.tokens_per_pack, cfg.train.steps, cfg.train.precision) == (2048, 300, "fp32")
    assert cfg.optim.lr == 1e-3
    assert cfg.optim.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        ("wan_1b", (30, 1536, 8960, 12)),
        ("dit_5b", (30, 3072, 14336, 24)),
        ("wan_14b", (40, 5120, 13824, 40)),
        ("dit_30b", (48, 6144, 24576, 48)),
    ],
)
def test_large_presets_have_the_published_shapes(preset: str, shape: tuple[int, ...]) -> None:
    cfg = train(f"run={preset}")
    assert (cfg.model.layers, cfg.model.width, cfg.model.ffn, cfg.model.heads) == shape
    assert cfg.model.head_dim == 128
    assert (cfg.train.precision, cfg.train.recompute.kind, cfg.model.text_dim) == ("bf16", "full", 4096)


def test_the_command_line_beats_the_preset() -> None:
    cfg = train("run=wan_1b", "model=micro", "optim.lr=3e-4", "diffusion.conditions.text=0.5")
    assert cfg.model.width == 64
    assert cfg.optim.lr == 3e-4
    assert cfg.diffusion.conditions.text == 0.5


def test_hydra_grammar_is_kept() -> None:
    cfg = train("optim.betas=[0.8,0.99]", "name='a, b'", "+optim.eps=1e-6", "++train.seed=7", "output=${name}/x")
    assert cfg.optim.betas == (0.8, 0.99)
    assert (cfg.name, cfg.optim.eps, cfg.train.seed, cfg.output) == ("a, b", 1e-6, 7, "a, b/x")
    assert train("diffusion.conditions={text: 0.5, inpainting: 0.5}").diffusion.conditions.inpainting == 0.5


def test_an_integer_serves_as_a_float() -> None:
    lr = train("optim.lr=1").optim.lr
    assert isinstance(lr, float)
    assert lr == 1.0


@pytest.mark.parametrize(
    ("override", "field", "parts"),
    [
        ("optim.lrr=1", "optim.lrr", ["did you mean optim.lr?"]),
        ("lr=1", "lr", ["did you mean optim.lr?"]),
        ("train.step=3", "train.step", ["did you mean train.steps?"]),
        ("diffusion.conditions.image2video=1", "diffusion.conditions.image2video", ["image_to_video"]),
        ("qqqq=3", "qqqq", ["add --help"]),
        ("hydra.run.dir=x", "hydra.run.dir", ["no such setting"]),
        ("=3", "", ["no such setting"]),
        ("run=smal", "run", ["micro, small", "did you mean run=small?"]),
        ("model=7", "model", ["must be one of", "wan_14b"]),
        ("model={layers: 2}", "model", ["name of an option"]),
        ("model.layers", "model.layers", ["key=value"]),
        ("", "", ["key=value"]),
        ("model.layers=[", "model.layers", ["cannot be parsed"]),
        ("name=a(b", "name", ["cannot be parsed", "quote"]),
        ("~model", "model", ["cannot be removed"]),
        ("model@other=micro", "model", ["package"]),
        ("model.layers=2,3", "model.layers", ["model.layers='2,3'", "several values"]),
        ("optim.lr=${nowhere}", "train", ["nowhere"]),
        ("optim.lr=nan", "optim.lr", ["finite"]),
        ("optim.lr=inf", "optim.lr", ["finite"]),
        pytest.param(f"optim.lr={10**400}", "optim.lr", ["finite"], id="beyond any float"),
        ("optim.lr=fast", "optim.lr", ["must be float, not text", "give a number, as optim.lr="]),
        ("optim.lr=0", "optim.lr", ["> 0", "1e-5 to 2e-3"]),
        ("model.layers=0", "model.layers", [">= 1"]),
        ("model.layers=2.5", "model.layers", ["must be int", "model.layers=2"]),
        ("model.layers=true", "model.layers", ["must be int, not bool"]),
        ("model.layers=null", "model.layers", ["not null"]),
        ("model.qk_norm=1", "model.qk_norm", ["true | false"]),
        ("model.patch=2", "model.patch", ["[int, int, int]", "write model.patch=[VALUE,VALUE,VALUE]"]),
        ("model.patch=[1,2]", "model.patch", ["exactly 3"]),
        ("model.patch=[1,2,x]", "model.patch[2]", ["must be int"]),
        ("name=3", "name", ["must be text", "quote"]),
        ("name=", "name", ["empty"]),
        ("model=micro,small", "model", ["several values"]),
        ("diffusion.objective=flwo", "diffusion.objective", ["flow, ddpm", "did you mean flow?"]),
        ("diffusion.conditions=1", "diffusion.conditions", ["group of settings"]),
        ("diffusion.conditions={txt: 1}", "diffusion.conditions.txt", ["diffusion.conditions.text"]),
        ("data.sources=3", "data.sources", ["must be {text: float}", "write data.sources={NAME:VALUE}"]),
        ("data.sources={image:much}", "data.sources.image", ["must be float, not text"]),
        ("data.sources={2:1.0}", "the name in data.sources", ["must be text"]),
        ("diffusion.text_dropout=1.5", "diffusion.text_dropout", [">= 0 and <= 1"]),
    ],
)
def test_one_clear_message(override: str, field: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        train(override)
    assert caught.value.field == field
    for part in parts:
        assert part in str(caught.value)
    assert "Remedy: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="set twice"):
        train("model.layers=2", "++model.layers=3")


@pytest.mark.parametrize(
    ("schema", "primary", "overrides", "field"),
    [
        (TrainRun, "train", [], "data.uri"),
        (IngestRun, "ingest", ["src=a"], "out"),
        (EncodeRun, "encode", ["out=b"], "src"),
        (EncodeRun, "encode", ["src=a", "out=b", "autoencoder=wan"], "autoencoder.path"),
        (SampleRun, "sample", ["out=b"], "ckpt"),
    ],
)
def test_required_settings_are_named(schema: type[Any], primary: str, overrides: list[str], field: str) -> None:
    with pytest.raises(ConfigError, match="required") as caught:
        load(schema, primary, overrides)
    assert caught.value.field == field


def test_the_other_verbs_load() -> None:
    ingest = load(IngestRun, "ingest", ["src=a", "out=b"])
    encode = load(EncodeRun, "encode", ["src=a", "out=s3://bucket/b"])
    sample = load(SampleRun, "sample", ["ckpt=a", "out=b.mp4"])
    assert ingest.captions is None
    assert (encode.area, encode.max_frames, encode.autoencoder.channels, encode.text_encoder.dim) == (
        16384,
        17,
        16,
        128,
    )
    assert sample.weights == "ema"


def test_every_group_option_is_listed() -> None:
    folder = configs_folder({})
    assert set(group_defaults(folder, "train")) == {
        "model",
        "data",
        "diffusion",
        "optim",
        "train",
        "checkpoint",
        "guard",
        "validation",
        "curriculum",
        "observe",
        "layers",
        "lora",
        "run",
    }
    assert "wan" in group_options(folder, "autoencoder")


def test_configs_variable_must_name_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_NAME, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=ENVIRONMENT_NAME):
        train()
    monkeypatch.setenv(ENVIRONMENT_NAME, str(tmp_path))
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        train()


def test_broken_yaml_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ingest.yaml").write_text("src: [1\n")
    monkeypatch.setenv(ENVIRONMENT_NAME, str(tmp_path))
    with pytest.raises(ConfigError, match=r"ingest\.yaml"):
        load(IngestRun, "ingest", ["src=a", "out=b"])
    (tmp_path / "ingest.yaml").write_text("- src\n")
    with pytest.raises(ConfigError, match="mapping"):
        load(IngestRun, "ingest", ["src=a", "out=b"])
    (tmp_path / "ingest.yaml").write_text("defaults: [{group: one}]\n")
    (tmp_path / "group").mkdir()
    for text in ("a: [1\n", "- 1\n", "a: 1\na: 2\n"):
        (tmp_path / "group" / "one.yaml").write_text(text)
        with pytest.raises(ConfigError):
            load(IngestRun, "ingest", ["src=a", "out=b"])
