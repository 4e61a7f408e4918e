"""Weights of Wan as a run folder: what `megavideo import` does, for scripts.

python tools/convert_from_wan.py SRC OUT [--expert high|low] [--heads N]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from megavideo.cli.main import main

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("src", help="folder of diffusers or of the original code, or a .safetensors file")
parser.add_argument("out", help="folder to make")
parser.add_argument("--expert", choices=("high", "low"))
parser.add_argument("--heads", type=int)
given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
sys.exit(main(["import", *(f'{name}="{value}"' for name, value in given.items())]))
