"""Entry point of the console script `slurm-gen`: the verb of that name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megavideo.cli.main import main as run_command_line


def main(words: Sequence[str] | None = None) -> int:
    """Run `slurm-gen` with `words`, those of the process where none are given, and return the exit status."""
    return run_command_line(["slurm-gen", *(sys.argv[1:] if words is None else words)])
