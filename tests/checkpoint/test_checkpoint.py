"""Checkpoints: read back under any split, named when damaged, kept as many as asked, and free of pickle."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from megavideo.checkpoint.manifest import list_checkpoints
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.write import Header, write_checkpoint
from megavideo.errors import CheckpointError
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE, Shard
from megavideo.testing.saved_run import alone

SHAPES = {"a.weight": (6, 4), "b.bias": (7,)}


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with alone():
        yield


def values(state: str, name: str, step: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + 10 * len(state) + len(name))
    return torch.randn(SHAPES[name], generator=generator)


def fragments(cuts: dict[str, list[int]], step: int = 0) -> list[Fragment]:
    """Every parameter in pieces that begin at `cuts`."""
    made = []
    for name, starts in cuts.items():
        flat = {state: values(state, name, step).flatten() for state in ("weight", "exp_avg", "ema")}
        numel = flat["ema"].numel()
        for begin, end in zip(starts, [*starts[1:], numel], strict=True):
            pieces = {state: whole[begin:end] for state, whole in flat.items()}
            made.append(Fragment(name, SHAPES[name], WHOLE, begin, pieces, torch.tensor(float(step))))
    return made


UNCUT = {"a.weight": [0], "b.bias": [0]}
CUT = {"a.weight": [0, 5, 23], "b.bias": [0, 3]}


def save(folder: Path, step: int, cuts: dict[str, list[int]] = UNCUT, keep: int = 2) -> Path:
    return write_checkpoint(folder, Header(step, "zero1", "name: x\n"), fragments(cuts, step), keep=keep)


@pytest.mark.parametrize("cuts", [UNCUT, CUT])
def test_any_range_is_read_from_any_split(tmp_path: Path, cuts: dict[str, list[int]]) -> None:
    reader = CheckpointReader(save(tmp_path, 3, cuts))
    for state in ("weight", "ema"):
        whole = reader.whole(state)
        assert {name: tuple(tensor.shape) for name, tensor in whole.items()} == SHAPES
        for name, tensor in whole.items():
            assert torch.equal(tensor, values(state, name, 3))
            flat = tensor.flatten()
            for begin, numel in ((0, 1), (2, 5), (4, 3), (0, flat.numel())):
                assert torch.equal(reader.read(state, name, WHOLE, begin, numel), flat[begin : begin + numel])
    assert (reader.manifest.step, reader.manifest.optimizer_steps) == (3, 3)
    live = fragments({"a.weight": [0, 11], "b.bias": [0, 1]}, step=9)
    for fragment in live:
        reader.fill(fragment)
    assert torch.equal(torch.cat([f.states["ema"] for f in live[:2]]), values("ema", "a.weight", 3).flatten())
    assert all(float(fragment.steps) == 3 for fragment in live)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 12):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000003", "step_00000012"]
    assert len(list(tmp_path.iterdir())) == 2
    assert find_checkpoint(tmp_path).name == "step_00000012"
    assert find_checkpoint(tmp_path / "step_00000003").name == "step_00000003"


PLACES = (
    "folder_place.write_tensors",
    "save_job.manifest_of",
    "folder_place.flush_folder",
    "save_job.RankPart.to_json",
)


@pytest.mark.parametrize("where", PLACES)
def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    save(tmp_path, 1)

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(f"megavideo.checkpoint.{where}", fail)
        with pytest.raises(CheckpointError, match=r"step_00000002: not saved.*rank 0: OSError: disk full.*Remedy"):
            save(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000001"]
    CheckpointReader(find_checkpoint(tmp_path)).verify()
    save(tmp_path, 3)
    assert not list(tmp_path.glob(".*"))


def test_a_killed_save_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    unfinished = tmp_path / ".writing-step_00000002"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_text("{}")
    assert list_checkpoints(tmp_path) == []
    save(tmp_path, 1)
    assert not unfinished.exists()


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1, UNCUT)
    save(tmp_path, 1, CUT)
    assert len(CheckpointReader(find_checkpoint(tmp_path)).manifest.files[0].fragments) == 15


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    flip(folder / "fragments_00000.safetensors")
    reader = CheckpointReader(folder)
    for use in (reader.verify, lambda: reader.whole("ema"), lambda: reader.read("weight", "b.bias", WHOLE, 0, 1)):
        with pytest.raises(CheckpointError, match=r"fragments_00000\.safetensors: damaged: its xxh64 .*Remedy"):
            use()
    (folder / "fragments_00000.safetensors").unlink()
    for use in (reader.verify, lambda: reader.whole("ema")):
        with pytest.raises(CheckpointError, match=r"fragments_00000\.safetensors: cannot be read"):
            use()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 2, "files": [3], "shapes": {}}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json: (damaged|cannot be read)"):
        CheckpointReader(folder)


def test_other_places(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"no manifest\.json: this is no checkpoint"):
        find_checkpoint(tmp_path)
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 7}))
    with pytest.raises(CheckpointError, match="format 7; this version reads 1, 2, 3"):
        CheckpointReader(folder)


def test_a_state_that_was_not_saved(tmp_path: Path) -> None:
    reader = CheckpointReader(save(tmp_path, 1))
    with pytest.raises(CheckpointError, match=r"state 'exp_avg_sq' of parameter 'a\.weight' .*weight"):
        reader.whole("exp_avg_sq")


class Other(nn.Module):
    """A model whose `a` is wider than the one saved."""

    def __init__(self, width: int = 4, *, bias: str = "b") -> None:
        super().__init__()
        self.a = nn.Linear(width, 6, bias=False)
        setattr(self, bias, nn.Module())
        getattr(self, bias).bias = nn.Parameter(torch.zeros(7))


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Shard]]:
    """Parameters of a model that is whole on this rank."""
    return ((name, parameter, WHOLE) for name, parameter in model.named_parameters())


def test_another_model_is_named_by_its_parameter(tmp_path: Path) -> None:
    reader = CheckpointReader(save(tmp_path, 1))
    model = Other().to(torch.bfloat16)
    reader.fill_parameters(parts(model))
    assert torch.equal(model.a.weight, values("weight", "a.weight", 1).bfloat16())
    reader.fill_parameters([("b.bias", nn.Parameter(torch.zeros(7)), WHOLE)])  # as a pipeline stage holds some only
    with pytest.raises(CheckpointError, match=r"'a\.weight' is \(6, 4\) in the checkpoint, \(6, 5\) in this run"):
        reader.fill_parameters(parts(Other(5)))
    with pytest.raises(CheckpointError, match=r"'c\.bias' is None in the checkpoint"):
        reader.fill_parameters(parts(Other(bias="c")))


def test_no_pickle_in_the_package(repo_root: Path) -> None:
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in (repo_root / "megavideo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not banned & {name.name.split(".")[0] for name in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in banned, path
            elif isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("torch.load", "torch.save"), path
                # np.load reads no pickle unless it is told to
                assert node.attr != "allow_pickle", path
            elif isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", path
