"""Twenty times two starts at the same moment, for every verb: one outcome, whole, and never a mixed one.

Who got through ends with 0, who did not with 75; on a busy machine one may come after the other has ended, and both end
with 0. `MEGAVIDEO_DOUBLE_STARTS` gives another number than twenty.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from megavideo.errors import RETRY_STATUS
from megavideo.testing.dataset import write_dataset
from megavideo.testing.launch import Finished
from tests.cli import double_starts, double_starts_of_runs
from tests.cli.double_starts import LEFTOVERS, DoubleStart, Ended
from tests.cli.double_starts_of_runs import LOOKS, content, saved_run
from tests.encoders.chat_server import chat_server, completion
from tests.start_together import start_together

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("MEGAVIDEO_DOUBLE_STARTS", "20"))
MAKERS = {**double_starts.MAKERS, **double_starts_of_runs.MAKERS}


@pytest.fixture
def captioner_url() -> Iterator[str]:
    """A server that captions."""
    with chat_server(lambda number, content: completion("seen")) as server:
        yield server.url


@pytest.mark.parametrize("commands", ["of two", "the same"])
@pytest.mark.parametrize("name", MAKERS)
def test_one_outcome(name: str, commands: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "given").mkdir()
    case = MAKERS[name](tmp_path / "given", request.getfixturevalue)
    refused = sum(_round(case, tmp_path / f"round_{number}", commands == "the same") for number in range(ROUNDS))
    logging.getLogger(__name__).warning("%s, %s: %d of %d second starts refused", name, commands, refused, ROUNDS)


def _round(case: DoubleStart, place: Path, same: bool) -> bool:
    """Start both; whether one was refused."""
    place.mkdir()
    given = case.commands(place)
    words = [given[0], given[0]] if same else given
    passes = (case.passes[0],) * 2 if same else case.passes
    finished = start_together(words, place.with_name(f"{place.name}_logs"))
    through = {number for number, ended in enumerate(finished) if _got_through(case, ended, passes[number])}
    assert through, finished
    found = case.whose(Ended(place, words, [ended.status for ended in finished]))
    assert found & ({0, *through} if same else through), (found, finished)
    left = [path for path in place.rglob("*") if path.name.startswith(LEFTOVERS)]
    assert left == [], left
    return RETRY_STATUS in (ended.status for ended in finished)


def _got_through(case: DoubleStart, ended: Finished, status: int) -> bool:
    """Whether it ended with `status`; AssertionError where it did not, and was not told of the other either."""
    told = ended.status == RETRY_STATUS and "in use by" in ended.err or ended.status != 0 and case.late in ended.err
    assert (ended.status == status) != told, ended
    assert ended.err.count("Remedy: ") == 1 if told else True, ended
    return not told


@pytest.mark.parametrize("name", LOOKS)
def test_who_only_looks_writes_nothing(name: str, tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    write_dataset(str(latents), 8)
    words = LOOKS[name](saved_run(tmp_path), latents)
    (tmp_path / "within").mkdir()
    before = content(tmp_path)
    for number in range(ROUNDS):
        logs = tmp_path.with_name(f"{tmp_path.name}_logs_{number}")
        finished = start_together([words, words], logs, tmp_path / "within")
        assert [ended.status for ended in finished] == [0, 0], finished
        assert finished[0].out and content(tmp_path) == before
