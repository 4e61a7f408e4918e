"""`python -m megavideo` is the console script `megavideo`."""

from __future__ import annotations

import sys

from megavideo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
