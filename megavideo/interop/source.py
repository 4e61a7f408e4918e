"""Where the weights of a video transformer lie: a file, a folder, or a part of a pipeline's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from megavideo.border.json_text import read_json
from megavideo.border.names import plain_name, shown
from megavideo.border.refused import Refused
from megavideo.errors import CheckpointError, ConfigError

Expert = Literal["high", "low"]
MODEL_INDEX = "model_index.json"
CONFIG = "config.json"
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline")
MODELS = ("WanTransformer3DModel", "WanModel")
_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# folders of the two experts: of diffusers, and of the original code
_EXPERTS: tuple[dict[Expert, str], ...] = (
    {"high": "transformer", "low": "transformer_2"},
    {"high": "high_noise_model", "low": "low_noise_model"},
)
KNOWN = (
    "known are a pipeline's folder of diffusers (" + ", ".join(PIPELINES) + "), its transformer/ alone, and files of "
    "the original Wan code, whole or with an index: Wan 2.1 and 2.2, text or image to video"
)


@dataclass(frozen=True)
class Source:
    """Files of one transformer's weights.

    `config` is the content of the config.json beside them, None where there is none; `placed` says for each tensor
    in which file an index has it. `pipeline` is the folder with the other parts, None where the weights stand alone,
    and `expert` the one of two that the files hold. `boundary_ratio` and `expand_timesteps` are as in model_index.json.
    """

    place: Path
    files: tuple[Path, ...]
    placed: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    pipeline: Path | None = None
    expert: Expert | None = None
    boundary_ratio: float | None = None
    expand_timesteps: bool = False


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


@dataclass(frozen=True)
class _Pipeline:
    boundary_ratio: Annotated[float, Interval(gt=0.0, lt=1.0)] | None = None
    expand_timesteps: bool = False


def expert_levels(expert: Expert, boundary: float) -> tuple[float, float]:
    """The noise levels, least and most, of one of two transformers that meet at `boundary`."""
    return (boundary, 1.0) if expert == "high" else (0.0, boundary)


def find_source(place: Path, expert: Expert | None = None, setting: str = "expert") -> Source:
    """The weights in a file or folder; `expert` tells which, where there are those of two.

    Raises CheckpointError where nothing that is known is there, ConfigError where `expert`, which is called `setting`,
    is missing or has no effect.
    """
    if place.is_file():
        _check_suffix(place)
        _check_one(place, expert, setting)
        return Source(place, (place,), {})
    if not place.is_dir():
        raise CheckpointError(f"{place}: no such file or folder. Remedy: give a local one; nothing is downloaded")
    pipeline = place if (place / MODEL_INDEX).exists() else None
    facts = _read_pipeline(place) if pipeline else _Pipeline()
    folder = _transformer(place, expert, setting)
    config = _read_config(folder)
    files, placed = _files(folder)
    return Source(folder, files, placed, config, pipeline, expert, facts.boundary_ratio, facts.expand_timesteps)


def _transformer(place: Path, expert: Expert | None, setting: str) -> Path:
    """The folder with the weights under `place`, or itself."""
    names = _experts(place)
    if names is not None:
        if expert is None:
            high, low = names["high"], names["low"]
            rule = f"{place} holds two transformers, {high} for high noise and {low} for low: one is read at a time"
            raise ConfigError(setting, None, rule, f"add {setting}=high or {setting}=low, or name {place / high}")
        return place / names[expert]
    _check_one(place, expert, setting)
    inner = place / "transformer"
    return inner if inner.is_dir() else place


def _experts(place: Path) -> dict[Expert, str] | None:
    return next((names for names in _EXPERTS if all((place / name).is_dir() for name in names.values())), None)


def _check_one(place: Path, expert: Expert | None, setting: str) -> None:
    if expert is not None:
        raise ConfigError(setting, expert, f"has no effect: {place} holds one transformer", "leave it out")


def _read_pipeline(folder: Path) -> _Pipeline:
    path = folder / MODEL_INDEX
    content = _json(path, dict[str, Any])
    name = content.get("_class_name")
    if name not in PIPELINES:
        raise CheckpointError(f"{path}: it is of {shown(str(name))}, and {KNOWN}. Remedy: give one of these")
    return _json(path, _Pipeline)


def _read_config(folder: Path) -> Mapping[str, Any] | None:
    path = folder / CONFIG
    if not path.exists():
        return None
    content: dict[str, Any] = _json(path, dict[str, Any])
    name = content.get("_class_name")
    if name not in MODELS:
        of = f"it is of {shown(str(name))}, and {' or '.join(MODELS)} is needed"
        raise CheckpointError(f"{path}: {of}; {KNOWN}. Remedy: give one of these")
    return content


def _files(folder: Path) -> tuple[tuple[Path, ...], Mapping[str, str]]:
    """Weight files of a folder, and for each tensor the file in which an index has it."""
    indexes = sorted(folder.glob(f"*{_INDEX_SUFFIX}"))
    if len(indexes) > 1:
        several = ", ".join(path.name for path in indexes)
        raise CheckpointError(f"{folder}: several sets of weights ({several}). Remedy: leave the index of one there")
    if indexes:
        placed = _json(indexes[0], _Index).weight_map
        names = sorted(set(placed.values()))
        for name in names:
            _check_shard(indexes[0], name)
        return tuple(folder / name for name in names), placed
    files = tuple(sorted(folder.glob(f"*{_SUFFIX}")))
    if files:
        return files, {}
    for path in sorted(folder.iterdir()):
        _check_pickle(path)
    raise CheckpointError(f"{folder}: no {_SUFFIX} file in it; {KNOWN}. Remedy: give one of these")


def _check_shard(index: Path, name: str) -> None:
    try:
        missing = not (index.parent / plain_name(name)).is_file()
    except Refused as error:
        raise CheckpointError(f"{index}: {error}. Remedy: copy the folder again") from error
    if missing:
        raise CheckpointError(f"{index}: {name}, which it names, is not there. Remedy: copy the missing file too")


def _check_suffix(path: Path) -> None:
    _check_pickle(path)
    if path.suffix != _SUFFIX:
        raise CheckpointError(f"{path}: not a {_SUFFIX} file; {KNOWN}. Remedy: give one of these")


def _check_pickle(path: Path) -> None:
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path}: a pickle, which can run code as it is opened, and is not opened here. Remedy: take the weights "
            f"as {_SUFFIX}, or convert the file where you trust its source (safetensors.torch.save_file of its tensors)"
        )


def _json(path: Path, kind: Any) -> Any:
    try:
        return read_json(path, kind)
    except (OSError, Refused) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remedy: copy the file again") from error


def named(names: Sequence[str], most: int = 5) -> str:
    """`3 tensors: 'a', 'b', 'c'`: the count, and the first few."""
    first = ", ".join(shown(name) for name in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}: {first}{more}"
