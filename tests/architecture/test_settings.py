"""Schema, YAML and code agree on the settings, and each check catches a disagreement."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megavideo.cli.verb_table import find_verb, verb_names
from megavideo.config.find import ENVIRONMENT_NAME, configs_folder, group_options
from megavideo.config.load import load
from megavideo.config.schema.prepare import EncodeRun
from megavideo.config.schema.train import TrainRun
from tests.architecture.reads import unread_fields
from tests.architecture.settings import stray_files, unknown_yaml_keys
from tests.architecture.source import Module


def schemas() -> dict[str, type[Any]]:
    """The schema of each primary config, as the verbs name them."""
    return {verb.primary: verb.schema for verb in map(find_verb, verb_names())}


@pytest.fixture
def copied_configs(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the YAML files that a test may spoil."""
    folder = tmp_path / "configs"
    shutil.copytree(repo_root / "configs", folder)
    monkeypatch.setenv(ENVIRONMENT_NAME, str(folder))
    return folder


def test_every_setting_is_read(modules: dict[str, Module]) -> None:
    assert list(unread_fields(schemas().values(), modules)) == []


@dataclass(frozen=True)
class Inner:
    """A made-up group."""

    steps: int = 1
    rate: float = 1.0


@dataclass(frozen=True)
class Run:
    """A made-up schema; `steps` is a setting of both."""

    inner: Inner
    steps: int = 1
    alone: int = 1
    written: int = 1
    checked: int = 1


READS = [
    ("def f(cfg: Run):\n    return cfg.inner.steps, cfg.inner.rate", {"Inner.steps", "Inner.rate"}),
    ("def f(cfg: 'Run | None'):\n    inner = cfg.inner\n    return inner.steps", {"Inner.steps"}),
    ("def f(cfg: Run):\n    a, b = cfg.inner, 2\n    return [a.steps for _ in range(b)]", {"Inner.steps"}),
    ("class A:\n    cfg: Run\n    def f(self):\n        return self.cfg.steps", {"Run.steps"}),
    (
        "class A:\n    def __init__(self, c: Inner):\n        self.c = c\n    def f(self): return self.c.steps",
        {"Inner.steps"},
    ),
    ("def f(cfg: Inner):\n    return getattr(cfg, 'steps')", {"Inner.steps"}),
    ("def f(cfg: Inner):\n    return asdict(cfg)", {"Inner.steps", "Inner.rate"}),
    ("def f():\n    cfg = load(Run, 'run', [])\n    return cfg.steps", {"Run.steps"}),
    ("def f(anything):\n    return anything.alone + anything.steps", {"Run.alone"}),
    ("def f(cfg: Run):\n    cfg.written = 1", set()),
    ("def f(cfg: Run):\n    return 0\ndef g(cfg):\n    return cfg.steps", set()),
]


@pytest.mark.parametrize(("code", "read"), READS)
def test_reads_are_followed(code: str, read: set[str], tree: Callable[..., dict[str, Module]]) -> None:
    every = {f"Inner.{name}" for name in ("steps", "rate")}
    every |= {f"Run.{name}" for name in ("inner", "steps", "alone", "written", "checked")}
    modules = tree({"train/a.py": code, "config/rules/b.py": "def f(cfg: Run):\n    return cfg.checked"})
    unread = {fault.split(" ")[0] for fault in unread_fields([Run], modules)}
    assert every - unread - {"Run.inner"} == read


def test_every_yaml_key_is_a_setting(repo_root: Path) -> None:
    assert list(unknown_yaml_keys(repo_root / "configs", schemas())) == []


def test_unknown_yaml_key_is_caught(copied_configs: Path) -> None:
    with (copied_configs / "autoencoder" / "wan.yaml").open("a") as file:
        file.write("tiles: 2\n")
    faults = list(unknown_yaml_keys(copied_configs, {"encode": EncodeRun}))
    assert faults == ["encode autoencoder=wan: autoencoder.tiles is no field of AutoencoderConfig"]


def test_every_yaml_file_is_reached(repo_root: Path) -> None:
    assert list(stray_files(repo_root / "configs", schemas())) == []


def test_stray_yaml_file_is_caught(copied_configs: Path) -> None:
    (copied_configs / "modle").mkdir()
    (copied_configs / "modle" / "small.yaml").write_text("layers: 1\n")
    (copied_configs / "trian.yaml").write_text("{}\n")
    assert len(list(stray_files(copied_configs, schemas()))) == 2


@pytest.mark.parametrize("preset", group_options(configs_folder({}), "run"))
def test_every_preset_composes_and_passes_the_rules(preset: str) -> None:
    cfg = load(TrainRun, "train", [f"run={preset}", "init_from=weights", "data.uri=data/latents"])
    assert cfg.name == preset


def test_broken_preset_is_caught(copied_configs: Path) -> None:
    with (copied_configs / "run" / "small.yaml").open("a") as file:
        file.write("\nmodel:\n  heads: 3\n")
    with pytest.raises(Exception, match=r"model\.heads=3: must divide"):
        load(TrainRun, "train", ["run=small", "data.uri=data/latents"])
