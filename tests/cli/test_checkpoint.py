"""`megavideo checkpoint` asked wrongly; what it does when asked rightly is tested beside the checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from megavideo.cli.main import main


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ["verify", "{run}/checkpoints/step_00000050"],
            "step_00000050: no such checkpoint. Remedy: take one of step",
        ),
        (["verify", "{run}/checkpoints/none/step_00000050"], "no such checkpoint. Remedy: give the place that a run"),
        (["ls", "{run}", "out=a"], "out='a': has no effect on ls"),
        (["show", "{run}", "hashes=true"], "hashes=True: has no effect on show"),
        (["reshard", "{run}", "out=a"], "ranks: is required by reshard"),
        (["rm", "{run}"], "must be one of ls, verify, show, reshard"),
    ],
)
def test_one_message(words: list[str], part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints" / "step_00000010").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000010" / "manifest.json").write_text("{}")
    assert main(["checkpoint", *(word.format(run=tmp_path) for word in words)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and part in err and err.count("\n") == 1
