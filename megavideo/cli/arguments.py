"""Words of the command line, sorted: flags, free texts and overrides. Overrides are left to `config.load`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from megavideo.cli.verb import TextOption, Words
from megavideo.config.names import nearest
from megavideo.errors import ConfigError

SWITCHES: Mapping[str, str] = {
    "-h": "help",
    "--help": "help",
    "--json": "json",
    "-v": "verbose",
    "--verbose": "verbose",
    "--version": "version",
}
_NAME = re.compile(r"[+~]*[A-Za-z_][\w.@]*")


@dataclass(frozen=True)
class Arguments:
    """`switches` are the names set (`help`, `json`, ...), `texts` maps each text flag to what it was given."""

    switches: frozenset[str]
    overrides: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]


def split_verb(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first word that is no switch is the verb; the others are its arguments."""
    for position, word in enumerate(words):
        if word not in SWITCHES:
            return word, [*words[:position], *words[position + 1 :]]
    return None, list(words)


def parse_arguments(
    words: Sequence[str],
    options: Sequence[TextOption] = (),
    plain: Words | None = None,
    settings: Collection[str] = (),
) -> Arguments:
    """Sort the words after the verb, which takes `plain` words where that is given, and has these `settings`.

    A text follows its flag as the next word or after `=`. A path may have a `=` in it: a word is a plain one as well
    where what stands before that cannot be a setting's name, or is none of this verb and the word is a path that
    exists. Raises ConfigError for an unknown flag, a flag without its text, and a flag given twice that does not
    repeat.
    """
    by_flag = {option.flag: option for option in options}
    switches: set[str] = set()
    overrides: list[str] = []
    texts: dict[str, list[str]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, joined, text = word.partition("=")
        if word in SWITCHES:
            switches.add(SWITCHES[word])
        elif flag in by_flag:
            if by_flag[flag].metavar is None and joined:
                raise ConfigError(flag, text, "takes no value", f"write {flag} alone")
            if not joined:
                text = _next_text(rest, by_flag[flag], [*SWITCHES, *by_flag])
            if flag in texts and not by_flag[flag].repeats:
                raise ConfigError(flag, text, "is given twice", "keep one of the two")
            setting = by_flag[flag].sets
            if setting is not None:
                overrides.append(f"{setting}={text}")
            else:
                texts.setdefault(flag, []).append(text)
        elif word.startswith("-"):
            known = [*SWITCHES, *by_flag]
            close = nearest(flag, known)
            remedy = f"did you mean {close}?" if close else _without_dashes(flag, text, known)
            raise ConfigError(flag, text or None, "there is no such option", remedy)
        elif plain is not None and not (joined and _is_setting(word, flag, settings)):
            texts.setdefault(plain.metavar, []).append(word)
        elif joined and f"--{flag}" in by_flag and by_flag[f"--{flag}"].sets is None:
            raise ConfigError(flag, text, "is an option, not a setting", f'write --{flag} "{text}"')
        else:
            overrides.append(word)
    return Arguments(frozenset(switches), tuple(overrides), {flag: tuple(given) for flag, given in texts.items()})


def _is_setting(word: str, name: str, settings: Collection[str]) -> bool:
    """Whether `name=...` sets something, or is meant to."""
    return _NAME.fullmatch(name) is not None and (name in settings or not os.path.exists(word))


def _without_dashes(flag: str, text: str, known: Sequence[str]) -> str:
    setting = f"{flag.lstrip('-')}={text or 'VALUE'}"
    return f"take one of {', '.join(known)}; a setting is written without dashes, as {setting}"


def _next_text(rest: list[str], option: TextOption, known: Sequence[str]) -> str:
    if option.metavar is None:
        return "true"
    if not rest or rest[0] in known:
        raise ConfigError(option.flag, None, f"needs {option.metavar}", f"write {option.flag}={option.metavar}")
    return rest.pop(0)
