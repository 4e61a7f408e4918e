"""Entry point of the console script `slurm-gen`: the verb of that name, and `--check` for `check=true`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megavideo.cli.main import main as run_command_line


def main(words: Sequence[str] | None = None) -> int:
    """Run `slurm-gen` with `words`, those of the process where none are given, and return the exit status."""
    given = sys.argv[1:] if words is None else words
    return run_command_line(["slurm-gen", *("check=true" if word == "--check" else word for word in given)])
