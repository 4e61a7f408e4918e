"""Values in the text of a shell script: quoted, unless they are marked as shell text already."""

from __future__ import annotations

import re
import shlex

_EXPANSION = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|\{[A-Za-z_][A-Za-z0-9_]*\})")
_SPECIAL = re.compile(r"[\\\"`$]")


class Shell(str):
    """Text that a script holds as it is."""

    __slots__ = ()


def quoted(value: object) -> str:
    """One word of the shell that stands for `value`; a `Shell` text as it is. For every value that a template prints.

    A word is also right after `=` and inside `${NAME:-...}`, but not between double quotes.
    """
    return value if isinstance(value, Shell) else shlex.quote(str(value))


def comment(value: object) -> Shell:
    """Text of a comment, or of an option after `#SBATCH`: it may hold anything but the end of the line.

    Raises ValueError where it is more than one line: settings that are were refused before.
    """
    text = str(value)
    if "\n" in text or "\r" in text:
        raise ValueError(f"{text!r} would end the comment")
    return Shell(text)


def expanded(value: object) -> Shell:
    """A word in double quotes in which the shell fills in `$NAME` and `${NAME}`, and runs nothing."""
    text, end, parts = str(value), 0, []
    for match in _EXPANSION.finditer(text):
        parts += [_escaped(text[end : match.start()]), match[0]]
        end = match.end()
    return Shell('"' + "".join([*parts, _escaped(text[end:])]) + '"')


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda match: "\\" + match[0], text)
