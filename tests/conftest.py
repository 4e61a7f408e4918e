"""Fixtures of all tests: one thread for torch, the repository's root, and the real clips where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch or DeepSpeed is imported by any test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_clips(repo_root: Path) -> Path:
    """The folder of real clips, from `MEGAVIDEO_CLIPS` or beside the checkout; the test is skipped without it."""
    folder = Path(os.environ.get("MEGAVIDEO_CLIPS", repo_root.parent / "shared" / "clips"))
    if not folder.is_dir():
        pytest.skip("no folder of real clips: set MEGAVIDEO_CLIPS")
    return folder
