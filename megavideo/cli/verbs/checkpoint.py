"""`megavideo checkpoint`: what is in a run's checkpoints, whether they are whole, and one of them in other files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megavideo.cli.checkpoint_source import brought_here, shelf
from megavideo.cli.describe import MAX_ROWS, describe_fields, one_line
from megavideo.cli.verb import Texts, Verb, Words
from megavideo.config.schema.checkpoint_verb import CheckpointVerbRun
from megavideo.errors import ConfigError

_WORDS = Words(
    "ACTION PLACE", "ls RUN, verify RUN|CHECKPOINT, show CHECKPOINT or reshard CHECKPOINT; a folder or s3://"
)
_FOR_RESHARD = ("out", "ranks")
_FACTS = ("place", "step", "optimizer_steps", "layout", "validation_loss", "stage_end", "num_files", "num_parameters")


def _run(cfg: CheckpointVerbRun, texts: Texts) -> Any:
    action, place = _words(texts.get(_WORDS.metavar, ()))
    _check_settings(cfg, action)
    return _ACTIONS[action](cfg, place)


def _list(cfg: CheckpointVerbRun, place: str) -> Any:
    from megavideo.checkpoint.survey import Looked, survey

    return survey(shelf(place), Looked(hashes=cfg.hashes))


def _verify(cfg: CheckpointVerbRun, place: str) -> Any:
    from megavideo.checkpoint.survey import Looked, survey

    return survey(shelf(place), Looked(hashes=True, values=cfg.values))


def _show(cfg: CheckpointVerbRun, place: str) -> Any:
    from megavideo.checkpoint.contents import contents_of

    with brought_here(place) as folder:
        return contents_of(folder)


def _reshard(cfg: CheckpointVerbRun, place: str) -> Any:
    from megavideo.checkpoint.reshard import reshard
    from megavideo.data.storage.owners import Claim, owning

    assert cfg.out is not None and cfg.ranks is not None
    claim = Claim("checkpoint reshard", "out= another folder")
    with brought_here(place) as folder, owning(Path(cfg.out), claim):
        return reshard(folder, Path(cfg.out), cfg.ranks)


_ACTIONS: dict[str, Callable[[CheckpointVerbRun, str], Any]] = {
    "ls": _list,
    "verify": _verify,
    "show": _show,
    "reshard": _reshard,
}


def _words(words: Sequence[str]) -> tuple[str, str]:
    if len(words) != 2 or words[0] not in _ACTIONS:
        actions = ", ".join(_ACTIONS)
        raise ConfigError(
            _WORDS.metavar, " ".join(words) or None, f"must be one of {actions}, and one place",
            "write megavideo checkpoint ls runs/small",
        )  # fmt: skip
    return words[0], words[1]


def _check_settings(cfg: CheckpointVerbRun, action: str) -> None:
    """A setting that another action reads is refused, and one that this one needs is asked for."""
    for name in _FOR_RESHARD:
        value = getattr(cfg, name)
        if action == "reshard" and value is None:
            raise ConfigError(name, None, "is required by reshard", "write out=DIR ranks=N")
        if action != "reshard" and value is not None:
            raise ConfigError(name, value, f"has no effect on {action}", "drop it, or take reshard")
    if cfg.hashes and action != "ls":
        raise ConfigError("hashes", True, f"has no effect on {action}", "drop it, or take ls")
    if not cfg.values and action != "verify":
        raise ConfigError("values", False, f"has no effect on {action}", "drop it, or take verify")


def _describe(report: Any) -> str:
    if hasattr(report, "checkpoints"):
        return _describe_survey(report)
    if hasattr(report, "parameters"):
        return _describe_contents(report)
    return describe_fields(report)


def _describe_survey(report: Any) -> str:
    from megavideo.observe.progress import format_bytes, format_seconds

    lines = [report.place, "", f"{'checkpoint':<16} {'stage':<12} {'layout':<26} {'files':>6} {'size':>10} {'age':>9} "
             f"{'val. loss':>10}  {'state':<11} kept because"]  # fmt: skip
    for row in report.checkpoints:
        loss = "-" if row.validation_loss is None else f"{row.validation_loss:.5g}"
        age = "-" if row.age_seconds is None else format_seconds(row.age_seconds)
        lines.append(
            f"{row.name:<16} {row.stage or '-':<12} {row.layout or '-':<26} {row.num_files:>6} "
            f"{format_bytes(row.size_bytes):>10} {age:>9} {loss:>10}  {row.state:<11} "
            f"{', '.join(row.kept_because) or '-'}"
        )
    lines += [f"FAULT: {fault}" for fault in report.faults]
    return "\n".join(lines)


def _describe_contents(report: Any) -> str:
    from megavideo.observe.progress import format_bytes

    lines = [f"{name.replace('_', ' '):<16} {one_line(getattr(report, name))}" for name in _FACTS]
    lines.append(f"{'size':<16} {format_bytes(report.size_bytes)}")
    lines += [f"{'progress':<16} {name}={one_line(value)}" for name, value in report.progress.items()]
    states = list(report.norms)
    width = max(len(row.name) for row in report.parameters)
    lines += ["", f"{'L2 norms':<{width}} {'':<18} " + " ".join(f"{state:>12}" for state in states)]
    for row in report.parameters[:MAX_ROWS]:
        shape = " x ".join(map(str, row.shape))
        lines.append(f"{row.name:<{width}} {shape:<18} " + " ".join(f"{row.norms[state]:12.5g}" for state in states))
    if len(report.parameters) > MAX_ROWS:
        lines.append(f"... and {len(report.parameters) - MAX_ROWS} more; --json lists all, and the settings of the run")
    lines.append(f"{'all':<{width}} {'':<18} " + " ".join(f"{report.norms[state]:12.5g}" for state in states))
    return "\n".join(lines)


VERB = Verb(
    name="checkpoint",
    summary="list, verify, show or rewrite checkpoints; loading under another layout needs no reshard",
    primary="checkpoint_verb",
    schema=CheckpointVerbRun,
    run=_run,
    describe=_describe,
    words=_WORDS,
    failed=lambda report: bool(getattr(report, "faults", ())),
    examples=(
        "megavideo checkpoint ls runs/small",
        "megavideo checkpoint verify runs/small/checkpoints/step_00001000 --json",
        "megavideo checkpoint show s3://BUCKET/PREFIX/small",
        "megavideo checkpoint reshard runs/small out=moved ranks=8",
    ),
)
