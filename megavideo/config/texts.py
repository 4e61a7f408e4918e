"""Settings of `megavideo ingest` that are short texts: a share `i/n`, an own score `module.function>=0.5`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megavideo.errors import ConfigError

_OWN = re.compile(
    r"(?P<path>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)\s*(?:(?P<sign>>=|<=)\s*(?P<bound>[-+]?[\d.]+(?:e-?\d+)?))?"
)


@dataclass(frozen=True)
class Share:
    """The part `index` (from 0) of `count` of all inputs."""

    index: int
    count: int


@dataclass(frozen=True)
class OwnScore:
    """A user's score: the dotted path of its function, and the least and greatest value that is kept."""

    path: str
    minimum: float | None
    maximum: float | None

    @property
    def name(self) -> str:
        """What the score is called in rows and reports: the last part of the path."""
        return self.path.rsplit(".", 1)[-1]


def parse_share(field: str, text: str) -> Share:
    """Read `i/n`. Raises ConfigError naming `field` on anything else."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(field, text, "must be i/n with i from 0 to n-1", f"write {field}=0/4 for the first of four")
    return Share(int(match[1]), int(match[2]))


def parse_own_score(field: str, text: str) -> OwnScore:
    """Read `package.module.function`, with or without `>=NUMBER` or `<=NUMBER`. Raises ConfigError on anything else."""
    match = _OWN.fullmatch(text.strip())
    try:
        bound = float(match["bound"]) if match and match["bound"] else None
    except ValueError:
        match = None
    if match is None:
        rule = "must be the dotted path of a function, with a threshold or without"
        raise ConfigError(field, text, rule, f"write it as '{field}=[\"mymodule.myscore>=0.5\"]'")
    low, high = (bound, None) if match["sign"] == ">=" else (None, bound)
    return OwnScore(match["path"], low, high)
