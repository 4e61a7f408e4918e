"""A rank that waits to be asked to stop, takes a while to save, and says so in the file RANK.txt of a folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from megavideo.errors import RETRY_STATUS
from megavideo.train.health.signals import StopRequest

if __name__ == "__main__":
    with StopRequest() as stop, (Path(sys.argv[1]) / f"{os.environ['RANK']}.txt").open("w", buffering=1) as log:
        log.write("ready\n")
        while stop.requested is None:
            time.sleep(0.01)
        log.write(f"{stop.requested}\n")
        time.sleep(0.5)
        log.write("saved\n")
    sys.exit(RETRY_STATUS)
