"""The job scripts of a run on a cluster, as texts by file name."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from megavideo.config.curriculum import Stage
from megavideo.config.schema.cluster import PrepareJob, SlurmGenRun
from megavideo.errors import ConfigError
from megavideo.launch.directives import (
    alone_directives,
    grace_seconds,
    prepare_directives,
    processes,
    train_directives,
)
from megavideo.launch.shell import Shell, comment, expanded, quoted

LOGS = "logs"
PROMPTS = "prompts.txt"
_LOGS_KEPT = "# Slurm makes no folders: without this one a job ends before it begins.\n*\n!.gitignore\n"

_TRAIN_USAGE = (
    "Arguments are further words of `megavideo train`, and options before the script's name beat its own:",
    "  sbatch --nodes=4 {out}/{file} layout=tp2-dp2-zero1",
    "MEGAVIDEO_RUN is the run's name, MEGAVIDEO_OUTPUT the folder of run folders, MEGAVIDEO_DATA the dataset,",
    "MEGAVIDEO_OVERRIDES further words, MEGAVIDEO_VENV the virtual environment; MEGAVIDEO_PREFLIGHT=off skips that.",
    "",
    "Ends with 0 when done and with 2 where settings or data are at fault; else it starts again by itself, as long as",
    "checkpoints get newer. What jobs did stands in RUN/slurm/jobs.log.",
)


def render_scripts(cfg: SlurmGenRun, stages: Sequence[Stage]) -> dict[str, str]:
    """File names, relative to `out`, and contents. `stages` are those of `load_stages(cfg)`.

    Every value that a template prints is quoted for the shell, unless the template says otherwise. Raises ConfigError
    where the run's name would be cut by Slurm.
    """
    writer = _Writer(cfg, stages[0])
    files: dict[str, str] = {}
    if cfg.curriculum == "none":
        files["train.sbatch"] = writer.train(stages[0])
    for stage in stages if cfg.curriculum != "none" else ():
        files[f"stage{stage.number}.sbatch"] = writer.train(stage)
    if cfg.curriculum != "none":
        files["curriculum.sh"] = writer.curriculum(len(stages))
    files["ingest.sbatch"] = writer.prepare("ingest", cfg.cluster.ingest)
    files["encode.sbatch"] = writer.prepare("encode", cfg.cluster.encode)
    files["sweep.sbatch"] = writer.sweep()
    files["evaluate.sbatch"] = writer.evaluate()
    files["export.sbatch"] = writer.export()
    files[PROMPTS] = "".join(f"{prompt}\n" for prompt in cfg.prompts)
    files[f"{LOGS}/.gitignore"] = _LOGS_KEPT
    return files


class _Writer:
    """Fills in the templates for one run on one cluster."""

    def __init__(self, cfg: SlurmGenRun, first: Stage) -> None:
        self._cfg = cfg
        self._logs = f"{cfg.out}/{LOGS}"
        self._name, self._output = first.config.name, first.config.output
        if self._name.split() != [self._name]:
            rule = "holds a space, at which Slurm would end the name of the job"
            raise ConfigError("name", self._name, rule, "take another one, as words=['name=NAME']")
        self._templates = Environment(
            loader=PackageLoader("megavideo.launch"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            keep_trailing_newline=True, comment_start_string="{##", comment_end_string="##}",  # not ${#array}
            finalize=quoted,
        )  # fmt: skip
        self._templates.filters |= {"comment": comment, "expanded": expanded, "shell": Shell}

    def train(self, stage: Stage) -> str:
        file = f"stage{stage.number}.sbatch" if stage.number else "train.sbatch"
        ranks = f"{self._cfg.run} on {processes(self._cfg.cluster)} ranks as {stage.config.layout}"
        about = f"Stage {stage.number} of {stage.of}, {stage.name}: {ranks}." if stage.number else f"Train {ranks}."
        job = f"stage{stage.number}" if stage.number else "train"
        return self._fill(
            "train.sbatch.j2", about, _named(_TRAIN_USAGE, self._cfg.out, file),
            directives=train_directives(self._cfg.cluster, f"{self._name}-{job}", self._logs),
            words=self._words(f"stage={stage.number}" if stage.number else None), stage=stage.number, sweep=False,
        )  # fmt: skip

    def sweep(self) -> str:
        usage = (
            "MEGAVIDEO_SWEEP names a file with the words of one run a line; lines that begin with # are left out:",
            "  MEGAVIDEO_SWEEP=runs.txt sbatch --array=1-$(grep -cvE '^[[:space:]]*(#|$)' runs.txt) {out}/{file}",
            "Each is called NAME-LINE. All else is as in the scripts that train.",
        )
        return self._fill(
            "train.sbatch.j2", f"Runs of {self._cfg.run}, one for each line of a file.",
            _named(usage, self._cfg.out, "sweep.sbatch"),
            directives=train_directives(self._cfg.cluster, f"{self._name}-sweep", self._logs),
            words=self._words(None), stage=0, sweep=True,
        )  # fmt: skip

    def prepare(self, verb: str, job: PrepareJob) -> str:
        variables = {"ingest": ("MEGAVIDEO_CLIPS", "MEGAVIDEO_LIST"), "encode": ("MEGAVIDEO_LIST", "MEGAVIDEO_DATA")}
        source, target = variables[verb]
        about = {"ingest": "List, cut, filter and describe clips", "encode": "Encode clips and captions into a dataset"}
        usage = (
            f"Arguments are words of `megavideo {verb}`; {source} and {target} are other ways to say src= and out=:",
            f"  sbatch {{out}}/{{file}} src=FOLDER out={'FOLDER' if verb == 'ingest' else 's3://BUCKET/PREFIX'}",
            "A task that fails starts again and goes on; one that ends with 2 has settings or data at fault.",
        )
        says = f'${{{source}:+"src=${source}"}} ${{{target}:+"out=${target}"}}'
        return self._fill(
            "prepare.sbatch.j2", f"{about[verb]}, shared out among {job.tasks} tasks.",
            _named(usage, self._cfg.out, f"{verb}.sbatch"),
            directives=prepare_directives(self._cfg.cluster, job, f"megavideo-{verb}", self._logs),
            verb=verb, says=says, gpus=job.gpus,
        )  # fmt: skip

    def evaluate(self) -> str:
        usage = (
            "Arguments are words of `megavideo sample`, as are those of MEGAVIDEO_SAMPLE_OVERRIDES:",
            "  MEGAVIDEO_RUN=NAME sbatch {out}/{file} steps=50",
            "MEGAVIDEO_RUN is the run's name, MEGAVIDEO_OUTPUT the folder of run folders, MEGAVIDEO_PROMPTS a file of",
            "prompts, MEGAVIDEO_VENV the virtual environment. Videos and a report come to RUN/evaluation.",
        )
        return self._fill(
            "evaluate.sbatch.j2", "Sample fixed prompts from a finished run, and report on it.",
            _named(usage, self._cfg.out, "evaluate.sbatch"),
            directives=alone_directives(self._cfg.cluster, f"{self._name}-evaluate", self._logs, gpus=1),
            prompts=f"{self._cfg.out}/{PROMPTS}",
        )  # fmt: skip

    def export(self) -> str:
        usage = (
            "Arguments are words of `megavideo export`, as are those of MEGAVIDEO_EXPORT_OVERRIDES:",
            "  MEGAVIDEO_RUN=NAME sbatch {out}/{file} dtype=bf16 out=FOLDER",
            "MEGAVIDEO_RUN is the run's name, MEGAVIDEO_OUTPUT the folder of run folders, MEGAVIDEO_VENV the virtual",
            "environment. Without out= the pipeline comes to RUN/export.",
        )
        return self._fill(
            "export.sbatch.j2", "Export a run as diffusers and others load it: one process, no GPU.",
            _named(usage, self._cfg.out, "export.sbatch"),
            directives=alone_directives(self._cfg.cluster, f"{self._name}-export", self._logs, gpus=0),
        )  # fmt: skip

    def curriculum(self, num_stages: int) -> str:
        usage = (
            "Options go to sbatch for each stage, words to each stage's script; --from K begins with stage K:",
            "  {out}/{file} --nodes=64 optim.lr=1e-4",
            "MEGAVIDEO_OVERRIDES_3 holds words for stage 3 alone. The variables of the stages' scripts count here too.",
        )
        about = f"Submit {num_stages} stages and the evaluation, each to begin when the one before it is done."
        named = _named(usage, self._cfg.out, "curriculum.sh")
        return self._fill("curriculum.sh.j2", about, named, directives=(), num_stages=num_stages)

    def _words(self, stage: str | None) -> list[str]:
        words = [f"run={self._cfg.run}"]
        words += [f"curriculum={self._cfg.curriculum}"] if stage else []
        return [*words, *([stage] if stage else []), *self._cfg.words]

    def _fill(self, template: str, about: str, usage: Sequence[str], **values: Any) -> str:
        cluster = self._cfg.cluster
        container = cluster.container
        shown: Mapping[str, Any] = {
            "about": about, "usage": usage, "command": self._command(), "run": self._name, "output": self._output,
            "requeue_limit": cluster.requeue_limit, "grace_seconds": grace_seconds(cluster),
            "modules": cluster.modules, "venv": cluster.venv, "threads": cluster.threads,
            "interface": cluster.interface, "environment": cluster.environment, "scratch": cluster.scratch,
            "image": container.image, "runner": container.runner, "mounts": container.mounts,
            "preflight": cluster.preflight, "gpus": cluster.gpus_per_node,
        }  # fmt: skip
        text = self._templates.get_template(template).render({**shown, **values})
        return "\n".join(line.rstrip() for line in text.removesuffix("\n").split("\n")) + "\n"

    def _command(self) -> str:
        """The words that give these scripts again; the cluster's own settings are in its file."""
        cfg = self._cfg
        words = [f"cluster={cfg.cluster.name}", f"run={cfg.run}", f"curriculum={cfg.curriculum}", f"out={cfg.out}"]
        return shlex.join(["slurm-gen", *words])


def _named(lines: Sequence[str], out: str, file: str) -> tuple[str, ...]:
    return tuple(line.format(out=out, file=file) if line.startswith("  ") else line for line in lines)
