"""An export is the same file to the byte, whichever layout saved the checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.testing.ranks import run_ranks
from tests.interop.layout_cases import SPEC, save_as
from tests.interop.runs import export, wan_run

LAYOUTS = [("cp2-ring-zero3", 2), ("tp2-sp-pp2-dp2-zero1", 8)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("runs")
    model = {f"model__{name}": value for name, value in dataclasses.asdict(SPEC.model).items() if name != "patch"}
    wan_run(folder, **{name: str(value).lower() for name, value in model.items() if value is not None})
    return folder / "run"


@pytest.mark.parametrize(("layout", "processes"), LAYOUTS)
def test_the_same_bytes_from_every_layout(
    layout: str, processes: int, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    names = run_ranks(save_as, (layout, str(run), str(folder)), tmp_path / "logs", processes=processes)[0]
    assert len(names) > 1 + processes // 2  # files of ranks
    one, other = (CheckpointReader(find_checkpoint(place)).manifest for place in (run, folder))
    shards = [{entry.shard for file in manifest.files for entry in file.fragments} for manifest in (one, other)]
    cuts = [{(entry.start, entry.numel) for file in m.files for entry in file.fragments} for m in (one, other)]
    assert shards[0] != shards[1] or cuts[0] != cuts[1]
    for weights in ("ema", "raw"):
        for kind, name in (("transformer", "folder"), ("single", "one.safetensors")):
            for place, out in ((run, tmp_path / "a" / weights / name), (folder, tmp_path / "b" / weights / name)):
                export([f"ckpt={place}", f"out={out}", f"format={kind}", f"weights={weights}", "verify=false"], capfd)
    for place, side in ((run, "a"), (folder, "b")):
        for scheme in ("fp8", "int8"):
            words = [f"ckpt={place}", f"out={tmp_path / side / scheme}", "format=transformer", "verify=false"]
            report = export([*words, f"quantization={scheme}", "shard_gb=1e-4"], capfd)["quantization"]
            (tmp_path / side / f"{scheme}.html").write_text(str(report["matrices"]))  # the page names its place
    made = [
        {
            path.relative_to(tmp_path / side): path.read_bytes()
            for path in (tmp_path / side).rglob("*")
            if path.is_file()
        }
        for side in "ab"
    ]
    sharded = [path for path in made[0] if path.parent.name in ("fp8", "int8")]
    assert made[0] == made[1] and len(made[0]) == 6 + len(sharded) + 2 and len(sharded) > 8
    assert made[0][Path("ema/one.safetensors")] != made[0][Path("raw/one.safetensors")]
