"""Where the YAML files are, which groups a primary config has, and which options a group has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from megavideo.border.files import read_file
from megavideo.border.refused import Refused
from megavideo.border.yaml_text import parse_yaml
from megavideo.errors import ConfigError

ENVIRONMENT_NAME = "MEGAVIDEO_CONFIGS"


def configs_folder(environment: Mapping[str, str] | None = None) -> Path:
    """The folder of YAML files: `MEGAVIDEO_CONFIGS`, else `configs/` of the checkout, else the packaged copy.

    Raises ConfigError when the variable names no folder or none of the three is there.
    """
    chosen = (os.environ if environment is None else environment).get(ENVIRONMENT_NAME)
    if chosen:
        folder = Path(chosen).expanduser().resolve()
        if not folder.is_dir():
            raise ConfigError(ENVIRONMENT_NAME, chosen, "is not a folder", "unset it, or name a copy of configs/")
        return folder
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "configs", package / "_configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        ENVIRONMENT_NAME, None, "no folder of configs was found", "reinstall megavideo, or set the variable"
    )


def group_defaults(folder: Path, primary: str) -> dict[str, str]:
    """Groups in the defaults list of `primary` with the option each takes when nothing is said."""
    path = folder / f"{primary}.yaml"
    try:
        content = parse_yaml(read_file(path)) or {}
    except (OSError, Refused) as error:
        raise ConfigError("configs", str(path), f"cannot be read: {error}", "restore the file") from error
    if not isinstance(content, dict):
        raise ConfigError("configs", str(path), "must be a mapping of settings", "restore the file")
    groups: dict[str, str] = {}
    for entry in content.get("defaults", []):
        if isinstance(entry, dict):
            groups.update({str(group): str(option) for group, option in entry.items()})
    return groups


def group_options(folder: Path, group: str) -> tuple[str, ...]:
    """Names of the YAML files in a group, sorted."""
    return tuple(sorted(path.stem for path in (folder / group).glob("*.yaml")))
