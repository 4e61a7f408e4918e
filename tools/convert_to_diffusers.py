"""A run as a pipeline of diffusers; `megavideo export` by the name that such scripts have.

    python tools/convert_to_diffusers.py --checkpoint RUN --output-dir FOLDER [--verify] [KEY=VALUE ...]

RUN is a run folder, one checkpoint, or either in a store; further words are settings of `megavideo export`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from megavideo.cli.main import main as run_command_line


def main(words: Sequence[str] | None = None) -> int:
    """Export, and return the exit status of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args(words)
    verify = str(given.verify).lower()
    place = [f"ckpt={given.checkpoint}", f"out={given.output_dir}", f"verify={verify}"]
    return run_command_line(["export", *place, *given.settings])


if __name__ == "__main__":
    sys.exit(main())
