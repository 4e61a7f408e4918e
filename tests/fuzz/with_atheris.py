"""Fuzzing led by coverage, with atheris, which is no requirement: `python -m tests.fuzz.with_atheris FORMAT [WORDS]`.

FORMAT is one of `tests/fuzz/test_fuzz.py`, WORDS are libFuzzer's: `-runs=N` and `-max_total_time=SECONDS` bound it. It
begins with damaged files, and what it makes of them is read as the tests do.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["megavideo"]):
    from megavideo.errors import MegavideoError
    from tests.fuzz.formats import formats


def main(name: str, words: list[str]) -> None:
    """Fuzz the format `name` until libFuzzer ends; anything but an error of ours ends it with a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        made = formats(Path(folder) / "made")
        if name not in made:
            raise SystemExit(f"no format {name!r}; there are {', '.join(sorted(made))}")
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number in range(64):
            (corpus / str(number)).write_bytes(made[name].damaged(Random(number)))

        def read(data: bytes) -> None:
            try:
                made[name].read(data)
            except MegavideoError as error:
                str(error).encode("utf-8")

        atheris.Setup([sys.argv[0], *words, str(corpus)], read)
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
