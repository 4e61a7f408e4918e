"""`megavideo sample`: prompts into mp4 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import TextOption, Texts, Verb
from megavideo.config.schema.sample import SampleRun
from megavideo.errors import ConfigError, DataError


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line, empty lines left out. Raises DataError when the file cannot be read or holds none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({error}). Remedy: give --prompts a text file"
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise DataError(f"{path}: holds no prompt. Remedy: write one prompt a line")
    return prompts


def prompts_of(texts: Texts) -> tuple[str, ...]:
    """The prompts given one by one, then those of the file. Raises ConfigError when there are none."""
    prompts = tuple(texts.get("--prompt", ()))
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

    return sample(cfg, prompts, negative[0] if negative else "")


VERB = Verb(
    name="sample",
    summary="sample videos from a trained run",
    primary="sample",
    schema=SampleRun,
    run=_run,
    describe=describe_fields,
    options=(
        TextOption("--prompt", "TEXT", "what the video shall show, in free text", repeats=True),
        TextOption("--prompts", "FILE", "a text file with one prompt a line"),
        TextOption("--negative", "TEXT", "what the video shall not show"),
    ),
    examples=('megavideo sample ckpt=runs/small out=red.mp4 --prompt "a red ball, bouncing"',),
)
