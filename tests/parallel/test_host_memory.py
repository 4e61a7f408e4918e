"""What a host needs while parameters of real size are made: some of one parameter, and nothing of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun

# a whole block after the embedder, whose modulation is the largest parameter; a quarter of a block past the first
CASES = (
    pytest.param("wan_14b", "images_256", 0, 1, 6 * 5120 * 5120, marks=pytest.mark.slow),
    ("dit_30b", "long_1024", 255, 4, 24_576 * 6144),
)


@pytest.mark.parametrize(("model", "stage", "rank", "tp", "largest"), CASES)
def test_the_host_holds_one_parameter_at_a_time(
    model: str, stage: str, rank: int, tp: int, largest: int, repo_root: Path
) -> None:
    words = ["--json", "--blocks", "1", "--models", model, "--stages", stage, "--rank", str(rank)]
    tool = [sys.executable, str(repo_root / "tools" / "bench" / "host_memory.py"), *words]
    report = json.loads(subprocess.run(tool, check=True, capture_output=True, text=True, timeout=600).stdout)
    (row,) = report["rows"]
    config = load(TrainRun, "train", [f"run={model}", "data.uri=none"]).model
    block = 8 * config.width**2 + 2 * config.width * config.ffn  # its matrices
    assert row["drawn"] > block and (row["drawn"] < 1.01 * block or rank == 0)
    assert row["largest_bytes"] == 4 * largest
    # the start value itself was seen, and next to nothing besides
    assert row["largest_bytes"] < row["above_bytes"] < 1.2 * row["largest_bytes"], row
    assert row["held"] < 1.01 * row["drawn"] / tp
    assert row["node_gb"] < 64.0, row
