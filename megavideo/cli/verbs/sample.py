"""`megavideo sample`: prompts into mp4 files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megavideo.border.files import read_file
from megavideo.border.json_text import read_json
from megavideo.border.refused import Refused
from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import TextOption, Texts, Verb
from megavideo.config.given import GivenFiles
from megavideo.config.schema.sample import SampleRun
from megavideo.errors import ConfigError, DataError

_JSON_SUFFIX = ".json"


@dataclass(frozen=True)
class GivenPrompt:
    """A prompt and the files that its sample is given; None for those of the settings."""

    prompt: str
    files: GivenFiles | None = None


@dataclass(frozen=True)
class _Row:
    prompt: str
    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    mask: str | None = None

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


def read_prompts(path: Path) -> tuple[GivenPrompt, ...]:
    """One prompt a line, empty lines left out, or a JSON list of prompts with files, which lie beside it.

    Raises DataError when the file cannot be read or holds none.
    """
    prompts: tuple[GivenPrompt, ...]
    try:
        if path.suffix == _JSON_SUFFIX:
            prompts = tuple(_given_prompt(row, path.parent) for row in read_json(path, list[_Row]))
        else:
            lines = read_file(path).decode("utf-8-sig").splitlines()
            prompts = tuple(GivenPrompt(line.strip()) for line in lines if line.strip())
    except (OSError, Refused, UnicodeDecodeError) as error:
        form = 'JSON as [{"prompt": TEXT, "image": FILE}]' if path.suffix == _JSON_SUFFIX else "UTF-8 text"
        raise DataError(f"{path}: cannot be read as {form} ({error}). Remedy: give --prompts such a file") from error
    if not prompts:
        raise DataError(f"{path}: holds no prompt. Remedy: write one prompt a line")
    return prompts


def _given_prompt(row: _Row, folder: Path) -> GivenPrompt:
    paths = (row.image, row.last_image, row.video, row.mask)
    files = GivenFiles(*(path and str(folder / path) for path in paths))
    return GivenPrompt(row.prompt, files if files != GivenFiles() else None)


def prompts_of(texts: Texts) -> tuple[GivenPrompt, ...]:
    """The prompts given one by one, then those of the file. Raises ConfigError when there are none."""
    prompts = tuple(GivenPrompt(text) for text in texts.get("--prompt", ()))
    for name in texts.get("--prompts", ()):
        prompts += read_prompts(Path(name))
    if not prompts:
        raise ConfigError("--prompt", None, "is required", "add --prompt TEXT, or --prompts FILE")
    return prompts


def _run(cfg: SampleRun, texts: Texts) -> Any:
    prompts = prompts_of(texts)
    negative: Sequence[str] = texts.get("--negative", ())
    if negative and cfg.guidance <= 1.0:
        rule = f"has no effect with guidance={cfg.guidance:g}"
        raise ConfigError("--negative", negative[0], rule, "take guidance above 1, as guidance=5, or drop it")
    from megavideo.generate.run import sample

    texts_of, files = [one.prompt for one in prompts], [one.files for one in prompts]
    return sample(cfg, texts_of, negative[0] if negative else "", files)


VERB = Verb(
    name="sample",
    summary="sample videos from a trained run",
    primary="sample",
    schema=SampleRun,
    run=_run,
    describe=describe_fields,
    options=(
        TextOption("--prompt", "TEXT", "what the video shall show, in free text", repeats=True),
        TextOption(
            "--prompts", "FILE", "a text file with one prompt a line, or a JSON list of prompts with their images"
        ),
        TextOption("--negative", "TEXT", "what the video shall not show"),
    ),
    examples=(
        'megavideo sample ckpt=runs/small out=red.mp4 --prompt "a red ball, bouncing"',
        'megavideo sample ckpt=runs/small out=ball.mp4 image=ball.png --prompt "a red ball, bouncing"',
    ),
)
