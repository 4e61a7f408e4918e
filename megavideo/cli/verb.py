"""What a verb of the command line is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class TextOption:
    """A flag that takes free text, as `--prompt TEXT`; the text is never parsed as an override.

    With `sets` the flag is another way to write that setting: `--steps 3` for `steps=3`, and with no `metavar` one that
    is true or false: `--check` for `check=true`.
    """

    flag: str
    metavar: str | None
    summary: str
    repeats: bool = False
    sets: str | None = None


@dataclass(frozen=True)
class Words:
    """Plain words that a verb takes, neither flags nor settings; they are among the texts under `metavar`."""

    metavar: str
    summary: str
    repeats: bool = False


@dataclass(frozen=True)
class Verb:
    """One command.

    `primary` names the YAML file that is composed and `schema` the dataclass built from it. `run` takes the built
    config and the texts given to each flag of `options`, and returns a report: a dataclass whose `asdict` is
    JSON-ready, or None. `describe` turns the report into the lines a user reads. Where `distributed` is set the verb
    is started once per rank, and only rank 0 reports. `failed` says of a report that the command found a fault: it is
    printed all the same, and the exit status is 1. `examples` stand in the help.
    """

    name: str
    summary: str
    primary: str
    schema: type[Any]
    run: Callable[[Any, Texts], Any]
    describe: Callable[[Any], str]
    options: tuple[TextOption, ...] = ()
    words: Words | None = None
    failed: Callable[[Any], bool] | None = None
    distributed: bool = False
    examples: tuple[str, ...] = ()
