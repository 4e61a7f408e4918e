"""No setting of slurm-gen becomes shell: every text of it is set to words that would run, and the scripts are run."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from megavideo.config.build import build, unwrap_optional
from megavideo.config.load import load
from megavideo.config.names import walk
from megavideo.config.rules import check
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.errors import ConfigError
from megavideo.launch.render import render_scripts
from megavideo.launch.shell import Shell, comment, expanded, quoted
from megavideo.launch.stages import load_stages

SPACED = "a b; touch PWNED $(touch PWNED) `touch PWNED` & touch PWNED | } ) \\ \"'"
JOINED = "a;>PWNED;$(>PWNED)`>PWNED`&>PWNED|}\\\"'"
BREAKS = ("\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\0", "\udcff")
BASE = ("cluster=laptop_test", "cluster.nodes=2", "run=micro", "curriculum=none", "cluster.gpus_per_node=0")
CONTAINER = ("cluster.venv=null", "cluster.container.image=a.sqsh")
BASES = {
    "plain": BASE,
    "curriculum": ("cluster=laptop_test", "run=micro", "curriculum=small"),
    "pyxis": (*BASE, *CONTAINER),
    "apptainer": (*BASE, *CONTAINER, "cluster.container.runner=apptainer"),
}


def values_of(base: str) -> dict[str, Any]:
    return dataclasses.asdict(load(SlurmGenRun, "slurm_gen", list(BASES[base])))


def text_settings() -> list[str]:
    """Dotted paths of the settings that are, or hold, free texts."""
    paths = []
    for field in walk(SlurmGenRun):
        inner, _ = unwrap_optional(field.hint)
        if inner is str or (get_origin(inner) in (tuple, dict) and str in get_args(inner)):
            paths.append(field.path)
    return paths


def spoilings(path: str, text: str) -> Iterator[Any]:
    """Values for a setting that hold `text`: by itself, or where it is taken only as a part of something."""
    if path == "cluster.environment":
        yield {"FREE": text}
        yield {text: "free"}
    elif path == "words":
        said = text.replace("'", "").replace("\\", "\\\\").replace('"', '\\"')  # as Hydra takes it
        yield (f'name="{said}"', f'output="{said}"')
        yield (f'output="{said}"',)
    elif path == "cluster.lines":
        yield (f"--comment={text}",)
        yield (text,)
    elif path in ("cluster.modules", "cluster.container.mounts", "prompts"):
        yield (text, text)
    else:
        yield text


def with_value(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    inner = with_value(values[name], rest, value) if rest else value
    return {**values, name: inner}


def checked(values: dict[str, Any], changed: str) -> SlurmGenRun | None:
    """The config, or None where the rules refuse what was changed, as one message."""
    try:
        cfg = build(SlurmGenRun, values)
        check(cfg)
        if changed in ("words", "run", "curriculum"):
            render_scripts(cfg, load_stages(cfg))
    except ConfigError:
        return None
    return cfg


def test_every_text_is_found() -> None:
    paths = text_settings()
    for path in ("out", "words", "prompts", "cluster.name", "cluster.container.mounts", "cluster.scratch",
                 "cluster.environment", "cluster.encode.memory", "cluster.venv"):  # fmt: skip
        assert path in paths
    assert len(paths) >= 24


@pytest.mark.parametrize("path", text_settings())
def test_no_text_has_a_line_break(path: str) -> None:
    base = "pyxis" if "container" in path else "plain"
    values = values_of(base)
    for sign in BREAKS:
        for value in spoilings(path, f"a{sign}#SBATCH --x"):
            with pytest.raises(ConfigError) as caught:
                check(build(SlurmGenRun, with_value(values, path, value)))
            assert path.split(".")[-1] in str(caught.value)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of Slurm that do nothing, and a virtual environment of nothing."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("srun", "scontrol", "squeue", "megavideo", "module"):
        (folder / name).write_text("#!/bin/bash\nexit 0\n")
        (folder / name).chmod(0o755)
    (folder / "sbatch").write_text("#!/bin/bash\necho 1\n")
    (folder / "sbatch").chmod(0o755)
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "activate").write_text("")
    return folder


def run_all(scripts: Mapping[str, str], stubs: Path, place: Path) -> None:
    """Each script as Slurm would start it, with its own defaults; all must be sound, and make no file PWNED."""
    place.mkdir()
    (place / "runs.txt").write_text("optim.lr=1e-4\n")
    environment = {
        "PATH": f"{stubs}:/usr/bin:/bin", "MEGAVIDEO_SWEEP": "runs.txt", "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_JOB_NAME": "job",
        "SLURM_JOB_NODELIST": "node", "SLURM_CPUS_PER_TASK": "1",
        "MEGAVIDEO_VENV": str(stubs / "venv"), "SLURM_RESTART_COUNT": "0",
    }  # fmt: skip
    for name, text in scripts.items():
        if not name.endswith((".sbatch", ".sh")):
            continue
        (place / name).write_text(text)
        sound = subprocess.run(["bash", "-n", name], cwd=place, capture_output=True, text=True, check=False)
        assert sound.returncode == 0, (name, sound.stderr)
        done = subprocess.run(
            ["bash", name], cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode in (0, 2), (name, done.stderr)
        assert "command not found" not in done.stderr and "syntax error" not in done.stderr, (name, done.stderr)
        found = list(place.rglob("PWNED"))
        assert found == [], name


def directives(scripts: Mapping[str, str]) -> dict[str, int]:
    """How many options each script gives to Slurm."""
    return {name: sum(line.startswith("#SBATCH") for line in text.split("\n")) for name, text in scripts.items()}


@pytest.mark.parametrize("base", ["pyxis", *(pytest.param(name, marks=pytest.mark.slow) for name in BASES)])
@pytest.mark.parametrize("text", [SPACED, JOINED])
def test_no_text_runs(base: str, text: str, stubs: Path, tmp_path: Path) -> None:
    values, taken = values_of(base), []
    for path in text_settings():
        for value in spoilings(path, text):
            if checked(with_value(values, path, value), path) is not None:
                taken.append((path, value))
                break
    for path, value in taken:
        values = with_value(values, path, value)
    cfg = checked(values, "words")
    assert cfg is not None and {"cluster.name", "cluster.modules", "words", "prompts"} <= {path for path, _ in taken}
    scripts = render_scripts(cfg, load_stages(cfg))
    plain = load(SlurmGenRun, "slurm_gen", list(BASES[base]))
    more = sum(path in _DIRECTIVES for path, _ in taken)
    before, after = directives(render_scripts(plain, load_stages(plain))), directives(scripts)
    assert all(before[name] <= after[name] <= before[name] + more for name in before)
    run_all(scripts, stubs, tmp_path / "place")
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is not None and base == "pyxis":
        files = [str(path) for path in (tmp_path / "place").glob("*.sbatch")]
        done = subprocess.run([shellcheck, "-S", "error", *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


_DIRECTIVES = (
    "cluster.lines", "cluster.partition", "cluster.account", "cluster.qos", "cluster.ingest.partition",
    "cluster.encode.partition",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", ["cluster.container.mounts", "words", "out", "cluster.name", "cluster.scratch"])
def test_texts_that_ran_once(path: str, stubs: Path, tmp_path: Path) -> None:
    """Each by itself, as one that ends a script early would hide the others."""
    values = values_of("pyxis" if "container" in path else "plain")
    ran = 0
    for text in (SPACED, JOINED):
        for value in spoilings(path, text):
            cfg = checked(with_value(values, path, value), path)
            if cfg is not None:
                run_all(render_scripts(cfg, load_stages(cfg)), stubs, tmp_path / f"place{ran}")
                ran += 1
    assert ran >= 1


def test_a_name_that_slurm_would_cut_is_refused() -> None:
    cfg = load(SlurmGenRun, "slurm_gen", [*BASE, "words=['name=my run']"])
    with pytest.raises(ConfigError, match=r"name='my run': holds a space.*words="):
        render_scripts(cfg, load_stages(cfg))


@pytest.mark.parametrize("text", [SPACED, JOINED, "$HOME/x", "${HOME}/$(touch PWNED)", "a'b\"c"])
def test_words_of_the_shell(text: str, tmp_path: Path) -> None:
    def said(word: str) -> str:
        script = f'x=${{NOT_SET:-{word}}}; printf %s "$x"' if not word.startswith('"') else f"printf %s {word}"
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env={"HOME": "/h"}, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert said(quoted(text)) == text
    expected = text.replace("${HOME}", "/h").replace("$HOME", "/h")
    assert said(expanded(text)) == expected
    assert list(tmp_path.iterdir()) == []


def test_what_is_shell_already_and_what_ends_a_comment() -> None:
    assert quoted(Shell("$x")) == "$x" and quoted(3) == "3" and quoted("") == "''"
    assert comment("a b") == "a b"
    with pytest.raises(ValueError, match="would end the comment"):
        comment("a\nb")
