"""docs/gpu.md: its commands are ones that the command line takes, with settings that fit each other."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest

from megavideo.cli.verb_table import find_verb
from megavideo.config.load import load
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.config.schema.train import TrainRun
from megavideo.launch.render import render_scripts
from megavideo.launch.stages import load_stages

DATASET = "s3://bucket/latents"


@pytest.fixture(scope="module")
def commands(repo_root: Path) -> list[list[str]]:
    """The words of each line of the page's blocks of commands, in which variables that are set before have their value.

    Words of MEGAVIDEO_OVERRIDES stand at the end of a job's own.
    """
    page = (repo_root / "docs" / "gpu.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    variables, found = {"DATA": DATASET}, []
    for line in [line for block in blocks for line in block.splitlines()]:
        words = shlex.split(Template(line).substitute(variables))
        if words[0] == "unset":
            variables.pop(words[1])
        elif words[0] == "export" or re.fullmatch(r"\w+=.*", words[0]):
            variables |= dict(word.split("=", 1) for word in words if word != "export")
        else:
            is_job = any(word.endswith(".sbatch") for word in words)
            found.append([*words, *(variables.get("MEGAVIDEO_OVERRIDES", "").split() if is_job else [])])
    return found


def of_verbs(commands: list[list[str]]) -> Iterator[tuple[str, list[str]]]:
    """Verb and settings of each `megavideo VERB ...`, however it is started."""
    for words in commands:
        if "megavideo" in words:
            verb, *rest = words[words.index("megavideo") + 1 :]
            yield verb, [word for word in rest if "=" in word and not word.startswith("-")]


def test_settings_of_every_command_fit(commands: list[list[str]]) -> None:
    found = list(of_verbs(commands))
    assert {"doctor", "train", "sample", "preflight", "status", "report"} <= {verb for verb, _ in found}
    for name, settings in found:
        verb = find_verb(name)
        if settings:
            load(verb.schema, verb.primary, settings)


def test_jobs_are_rendered_before_they_are_submitted_and_take_their_words(commands: list[list[str]]) -> None:
    rendered: dict[str, SlurmGenRun] = {}
    submitted = 0
    for words in commands:
        if words[0] == "slurm-gen":
            config = load(SlurmGenRun, "slurm_gen", words[1:])
            rendered |= {f"{config.out}/{name}": config for name in render_scripts(config, load_stages(config))}
        for place, word in enumerate(words):
            if word.endswith((".sbatch", "curriculum.sh")):
                submitted += 1
                config = rendered[word]
                number = re.search(r"stage(\d)", word)
                own = [f"run={config.run}", f"curriculum={config.curriculum}", f"data.uri={DATASET}"]
                own += [f"stage={number[1]}"] if number else []
                load(TrainRun, "train", [*own, *words[place + 1 :]])
    assert submitted >= 5


def test_layouts_that_are_compared_are_those_that_were_trained(commands: list[list[str]], repo_root: Path) -> None:
    trained = [word.removeprefix("name=") for words in commands for word in words
               if word.startswith("name=") and "torchrun" in words]  # fmt: skip
    (compared,) = [words[-1] for words in commands if words[0] == "head"]
    assert compared == f"/shared/runs/{{{','.join(trained)}}}/metrics.jsonl"


def test_the_page_is_linked(repo_root: Path) -> None:
    assert "(docs/gpu.md)" in (repo_root / "README.md").read_text()
    assert "(gpu.md)" in (repo_root / "docs" / "architecture.md").read_text()
