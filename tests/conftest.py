"""How workers share the tests, and fixtures of all tests.

One thread for torch, the root of the checkout, a bucket, a small disk, and real clips.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.full_disk import mounted_disk
from tests.s3_bucket import s3_test_bucket

# Set before torch or DeepSpeed is imported by any test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Where no name server answers, torch's store and gloo would wait 10 s for the names of this machine, each time.
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")


# Tests of a folder that stay on one worker: those that use a fixture which is made once and costs much, or (None) all,
# as a machine has one Slurm at a time.
_TOGETHER = {"train": "place", "slurm": None}
# Groups that take longest begin first, so that no worker is left alone with one at the end.
_FIRST = ("tests/train", "tests/parity", "tests/autoencoder", "tests/slurm", "tests/preflight")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give slow tests their time; where several workers run them, keep those of a file, or of `_TOGETHER`, on one."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(4 * 3600))
    if not config.getoption("numprocesses", default=None) and not os.environ.get("PYTEST_XDIST_WORKER"):
        return
    for item in items:
        folder, fixtures = item.path.parent, getattr(item, "fixturenames", ())
        fixture = _TOGETHER.get(folder.name, "")
        group = folder if fixture is None or fixture in fixtures else item.path
        item.add_marker(pytest.mark.xdist_group(str(group.relative_to(config.rootpath))))
    items.sort(key=_place_in_order)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail where xdist does not see the groups, which makes fixtures anew for every worker and starts two Slurms."""
    if os.environ.get("PYTEST_XDIST_WORKER") and session.config.getoption("loadgroup", default=False):
        assert all("@" in item.nodeid for item in session.items), "this pytest and this xdist do not group tests"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """Take away pytest's variable with the test's name: an address with a password in that would count as a secret."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


def _place_in_order(item: pytest.Item) -> int:
    name = item.nodeid
    return next((place for place, first in enumerate(_FIRST) if name.startswith(first)), len(_FIRST))


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    with mounted_disk(tmp_path / "disk") as place:
        yield place


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of the server that S3_ENDPOINT_URL names when MEGAVIDEO_TEST_S3 is set, else of moto's server."""
    with s3_test_bucket(monkeypatch) as uri:
        yield uri


@pytest.fixture(scope="module")
def s3_shared() -> Iterator[str]:
    """A bucket for all tests of a module, which takes most of the time of a short one; `s3_prefix` keeps them apart."""
    with pytest.MonkeyPatch.context() as patch, s3_test_bucket(patch) as uri:
        yield uri


@pytest.fixture
def s3_prefix(s3_shared: str, tmp_path: Path) -> str:
    """A prefix of its own for each test, in a bucket that it shares with others."""
    return f"{s3_shared}/{tmp_path.name}"
