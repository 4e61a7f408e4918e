"""The report of the verb, and what it refuses before a process is started."""

from __future__ import annotations

import json

import pytest
import torch

from megavideo.cli.main import main
from megavideo.config.schema.parity import ParityRun
from megavideo.errors import ConfigError
from megavideo.parallel.layers.sharding import WHOLE
from megavideo.parity.compare import Incomparable, compare
from megavideo.parity.pool import Pool
from megavideo.parity.record import Piece, Record
from megavideo.parity.run import check_parity_layout, run_parity
from megavideo.parity.spec import ParitySpec

SMALL = ("--steps", "1", "--layers", "1", "packs_per_step=2")


def test_a_layout_that_fails_is_a_row_and_the_next_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of processes that are not done in time there are no numbers; the status says that the check found a fault."""
    original, pools = Pool.run, [Pool(limit_seconds=0.01), Pool()]
    monkeypatch.setattr(Pool, "run", lambda pool, *given: original(pools.pop(0), *given))
    assert main(["parity", "dp2-zero1", "zero0", *SMALL, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    late, done = report["layouts"]
    assert (report["failed"], late["within"], done["within"]) == (1, False, True)
    assert (late["loss_rel"], done["error"]) == (None, None)
    assert late["error"].startswith("2 processes on ")


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ("dp3-zero1", r"^packs_per_step=8: .*take packs_per_step=9"),
        ("cp5-ring", r"^tokens=96: .*take tokens=95 or 100"),
        ("tp5", r"heads=12.*or change heads"),
        ("pp8", r"num_layers=4.*or num_layers=8"),
    ],
)
def test_what_is_refused_has_the_names_of_the_verbs_settings(layout: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        check_parity_layout(ParitySpec(), layout)
    assert not any(group in str(caught.value) for group in ("train.", "model.", "data."))


@pytest.mark.parametrize(
    ("run", "field"),
    [
        (ParityRun(precision="fp8", steps=3), "steps"),
        (ParityRun(precision="fp8", packs_per_step=4), "packs_per_step"),
        (ParityRun(precision="fp8", matrix="fast"), "precision"),
        (ParityRun(precision="fp8", device_like="gpu"), "device_like"),
        (ParityRun(matrix="full", tokens=48), "tokens"),
    ],
)
def test_settings_without_effect_are_refused(run: ParityRun, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}=.*has no effect with"):
        run_parity(run, ())


@pytest.mark.parametrize("losses", [(1.0, float("nan")), (1.0, float("inf")), (float("nan"), 1.0)])
def test_numbers_that_are_not_finite_are_infinitely_far(losses: tuple[float, ...]) -> None:
    """On either side, and wherever they stand among finite ones."""
    pieces = tuple(Piece(kind, 0, "weight", (2,), WHOLE, 0, torch.ones(2)) for kind in ("grad", "weight", "ema"))
    finite, other = Record((1.0, 1.0), (1.0,), pieces), Record(losses, (1.0,), pieces)
    assert compare("zero0", finite, [finite], "fp32").within(0.0, 0.0)
    for expected, found in ((finite, other), (other, finite), (other, other)):
        assert compare("zero0", expected, [finite, found], "fp32").loss_rel == float("inf")


def test_elements_that_one_side_lacks_are_named() -> None:
    def record(names: str, numel: int) -> Record:
        pieces = [Piece("grad", 2, name, (3,), WHOLE, 0, torch.ones(numel)) for name in names]
        return Record((1.0,), (1.0,), tuple(pieces))

    with pytest.raises(Incomparable, match="no process holds all of gradient of b in step 3"):
        compare("dp2-zero1", record("ab", 3), [record("a", 3)], "fp32")
    with pytest.raises(Incomparable, match="no process holds all of gradient of a in step 3"):
        compare("dp2-zero1", record("a", 3), [record("a", 2), record("a", 1)], "fp32")
    with pytest.raises(Incomparable, match="one process has no gradient of b in step 3"):
        compare("dp2-zero1", record("a", 3), [record("ab", 3)], "fp32")
