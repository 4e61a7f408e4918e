"""The folder that holds all a run leaves: settings, code version, numbers, checkpoints and pictures."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavideo.border.secrets import Secrets
from megavideo.errors import DataError
from megavideo.observe.whole_file import write_file

_REPORTED_PACKAGES = ("torch", "deepspeed", "megatron-core", "diffusers", "mosaicml-streaming")
_GIT_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class RunFolder:
    """The places inside a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved settings, YAML."""
        return self.root / "config.yaml"

    @property
    def code_version(self) -> Path:
        """Versions of the code and of its main packages, JSON."""
        return self.root / "code_version.json"

    @property
    def metrics(self) -> Path:
        """The numbers of every step, JSONL."""
        return self.root / "metrics.jsonl"

    @property
    def faults(self) -> Path:
        """What went wrong, JSONL."""
        return self.root / "faults.jsonl"

    @property
    def stages(self) -> Path:
        """When stages began and ended, JSONL."""
        return self.root / "stages.jsonl"

    @property
    def validation(self) -> Path:
        """Losses on clips that are not trained on, JSONL."""
        return self.root / "validation.jsonl"

    @property
    def samples(self) -> Path:
        """Folder of samples drawn during training: step_00000500/00.mp4 and so on, beside prompts.json."""
        return self.root / "samples"

    @property
    def report(self) -> Path:
        """The page of `megavideo report`."""
        return self.root / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Folder of plots and sample pictures."""
        return self.root / "pictures"

    @property
    def encoders(self) -> Path:
        """Folder of the encoders' description, so that the run can be sampled without its dataset."""
        return self.root / "encoders"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.root / "tensorboard"


def folder_content(place: Path) -> list[Path]:
    """What lies in a folder. Raises DataError where it is none, or may not be read."""
    try:
        return list(place.iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{place}: is no folder. Remedy: name a run folder, as runs/small") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror}). Remedy: ask its owner for access") from error


def create_run_folder(root: Path, config_yaml: str, command: Sequence[str]) -> RunFolder:
    """Create the folder of a run, or open that of a run to be continued, and return its places.

    `config_yaml` is the resolved configuration as YAML text, `command` the command line. Where the folder holds other
    settings or versions from an earlier start, those stay beside the new ones as `config.1.yaml` and so on.
    """
    folder = RunFolder(root)
    for place in (folder.root, folder.checkpoints, folder.pictures, folder.encoders):
        place.mkdir(parents=True, exist_ok=True)
    version = json.dumps(code_version(command), indent=2) + "\n"
    _write_keeping_old(folder.config, config_yaml)
    _write_keeping_old(folder.code_version, version)
    return folder


def code_version(command: Sequence[str]) -> dict[str, Any]:
    """Return what code runs: versions, the git commit and whether files differ from it (None outside git)."""
    commit, dirty = _git_state(Path(__file__).resolve().parents[1])
    return {
        "megavideo": _package_version("megavideo"),
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in _REPORTED_PACKAGES},
        "platform": platform.platform(),
        "command": Secrets.of_process().hide_all(command),
    }


def _package_version(name: str) -> str | None:
    """Return the installed version of a package without importing it, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(package: Path) -> tuple[str | None, bool | None]:
    """Return the commit that holds `package` and whether it is changed; None where it is not under git."""
    # An installed copy may lie inside some other repository: only a tracked file tells of ours.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, or None where git is missing, refuses or hangs."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _write_keeping_old(path: Path, text: str) -> None:
    """Write `text` to `path` in one move; a different earlier text is kept under the next free number."""
    if path.exists():
        if path.read_text(encoding="utf-8") == text:
            return
        number = 1
        while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        kept.write_bytes(path.read_bytes())  # not a link: some shared file systems have none
    write_file(path, text.encode())
