"""`slurm-gen`: the scripts of a run written to a folder, or compared with what is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megavideo.config.curriculum import Stage
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.config.schema.plan import PlanRun
from megavideo.errors import ConfigError
from megavideo.launch.directives import processes
from megavideo.launch.render import render_scripts
from megavideo.launch.stages import load_stages
from megavideo.planning.report import stage_report
from megavideo.planning.stage_plan import plan_stage
from megavideo.planning.text import two_lines

_SCRIPTS = (".sbatch", ".sh")


@dataclass(frozen=True)
class SlurmGenReport:
    """What was written. `changed` are the files that were not there or other than now, `stale` scripts of others.

    `plans` has two lines of the planner's for each stage, of a cluster that names its `chip`.
    """

    out: str
    checked: bool
    nodes: int
    ranks: int
    layouts: dict[str, str]
    files: list[str]
    changed: list[str]
    stale: list[str]
    plans: dict[str, list[str]]


def generate(cfg: SlurmGenRun) -> SlurmGenReport:
    """Render every script and write those that differ, or with `check` none.

    Raises ConfigError for a stage whose settings do not fit the cluster, before anything is written, and for a folder
    that cannot be written.
    """
    stages = load_stages(cfg)
    files = render_scripts(cfg, stages)
    out = Path(cfg.out)
    changed = [name for name, text in files.items() if _content(out / name) != text]
    if not cfg.check:
        _write(out, {name: files[name] for name in changed})
    return SlurmGenReport(
        out=cfg.out,
        checked=cfg.check,
        nodes=cfg.cluster.nodes,
        ranks=processes(cfg.cluster),
        layouts={stage.name or cfg.run: stage.config.layout for stage in stages},
        files=[str(out / name) for name in files],
        changed=[str(out / name) for name in changed],
        stale=sorted(str(path) for path in out.glob("*") if path.suffix in _SCRIPTS and path.name not in files),
        plans=_plans(cfg, stages),
    )


def _plans(cfg: SlurmGenRun, stages: tuple[Stage, ...]) -> dict[str, list[str]]:
    if cfg.cluster.chip is None or not cfg.cluster.gpus_per_node:
        return {}
    plan = PlanRun(cluster=cfg.cluster, run=cfg.run, curriculum=cfg.curriculum)
    return {stage.name or cfg.run: two_lines(stage_report(plan_stage(stage, plan))) for stage in stages}


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _write(out: Path, files: dict[str, str]) -> None:
    try:
        for name, text in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if path.suffix in _SCRIPTS:
                path.chmod(0o755)
    except OSError as error:
        raise ConfigError("out", str(out), f"cannot be written: {error}", "name a folder of your own") from error
