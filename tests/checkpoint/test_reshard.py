"""Checkpoints of tensor-parallel parts: written under one sharding, read under any other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megavideo.checkpoint import read as read_module
from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import DamagedError, FragmentEntry, Header, parse_manifest, read_manifest
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.rank_part import RankPart, manifest_of
from megavideo.checkpoint.read import CheckpointReader
from megavideo.checkpoint.snapshot import Snapshot
from megavideo.errors import CheckpointError
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE, Shard

# a parameter's whole shape, the dim along which it is cut (None: never) and its stacked blocks
PARAMETERS: dict[str, tuple[tuple[int, ...], int | None, int]] = {
    "qkv.weight": ((72, 10), 0, 3),
    "qkv.bias": ((72,), 0, 3),
    "up.weight": ((48, 10), 0, 1),
    "down.weight": ((10, 48), 1, 1),
    "norm.weight": ((10,), None, 1),
}
STATES = ("weight", "ema")


def values(state: str, name: str) -> torch.Tensor:
    """A whole parameter, whose elements are told apart between parameters and states."""
    shape = PARAMETERS[name][0]
    first = 10_000.0 * (10 * STATES.index(state) + list(PARAMETERS).index(name))
    return torch.arange(math.prod(shape)).view(shape) + first


def shard_of(name: str, index: int, count: int) -> Shard:
    _, dim, blocks = PARAMETERS[name]
    return WHOLE if dim is None else Shard(dim, blocks, index, count)


def part_of(name: str, index: int, count: int, ranges: list[tuple[int, int]] | None = None) -> list[Fragment]:
    """The part of one tensor-parallel rank, in ranges of its elements."""
    shape, shard = PARAMETERS[name][0], shard_of(name, index, count)
    flats = {state: shard.take(values(state, name)).flatten() for state in STATES}
    return [
        Fragment(
            name, shape, shard, start, {s: flat[start:end].clone() for s, flat in flats.items()}, torch.tensor(4.0)
        )
        for start, end in ranges or [(0, flats["ema"].numel())]
    ]


def save_ranks(folder: Path, ranks: list[list[Fragment]]) -> Path:
    """What ranks with these fragments write together, without their processes."""
    place, save, parts = FolderPlace(folder), SaveId(4, "test", 0), []
    place.begin(save)
    for rank, fragments in enumerate(ranks):
        state = Snapshot().take(fragments)
        parts.append(RankPart(tuple(place.write(save, rank, state)), state.steps, state.shapes))
    place.publish(save, manifest_of(Header(4, "tp2", "name: x\n"), parts))
    return folder / save.name


def save_tp(folder: Path, tp: int, names: tuple[str, ...] = tuple(PARAMETERS), pieces: int = 1) -> Path:
    """Every parameter as `tp` ranks save it, each in so many fragments over as many ranks of ZeRO."""
    ranks = []
    for index in range(tp):
        for piece in range(pieces):
            rank = []
            for name in names:
                numel = math.prod(shard_of(name, index, tp).local_shape(PARAMETERS[name][0]))
                cuts = [numel * i // pieces for i in range(pieces + 1)]
                rank += part_of(name, index, tp, [(cuts[piece], cuts[piece + 1])])
            ranks.append(rank)
    return save_ranks(folder, ranks)


@pytest.fixture(params=[1, 2, 7])
def tp2(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointReader:
    return CheckpointReader(save_tp(tmp_path, 2, pieces=request.param))


@pytest.fixture(params=[16, 60, 4096])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks so small that each parameter takes many, and units so small that parameters have many."""
    monkeypatch.setattr(read_module, "_CHUNK", request.param)
    monkeypatch.setattr(read_module, "_MAX_UNIT", min(request.param, 12))
    yield


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_parts_are_read_under_any_other_sharding(tp2: CheckpointReader, tp: int) -> None:
    for name in PARAMETERS:
        for index in range(tp):
            shard = shard_of(name, index, tp)
            for state in STATES:
                expected = shard.take(values(state, name)).flatten()
                assert torch.equal(tp2.read(state, name, shard, 0, expected.numel()), expected)
                for start, end in (
                    (0, 1),
                    (3, 10),
                    (5, expected.numel() - 1),
                    (expected.numel() - 2, expected.numel()),
                ):
                    assert torch.equal(tp2.read(state, name, shard, start, end - start), expected[start:end])
    with pytest.raises(CheckpointError, match=r"'up\.weight' is not there in whole \(480 of 481 elements"):
        tp2.read("ema", "up.weight", WHOLE, 0, 481)


def test_the_manifest_has_the_whole_parameters(tp2: CheckpointReader) -> None:
    shapes = {name: shape for name, (shape, _, _) in PARAMETERS.items()}
    assert tp2.manifest.shapes == shapes
    for state in STATES:
        whole = tp2.whole(state)
        assert all(torch.equal(whole[name], values(state, name)) for name in PARAMETERS)
        assert whole.keys() == shapes.keys()


def test_stages_of_a_pipeline_know_their_own_parameters_only(tmp_path: Path) -> None:
    ranks = [part_of("up.weight", 0, 1), part_of("down.weight", 0, 1), []]
    reader = CheckpointReader(save_ranks(tmp_path, ranks))
    assert {name: tensor.shape for name, tensor in reader.whole("ema").items()} == {
        "up.weight": (48, 10),
        "down.weight": (10, 48),
    }


def test_ranks_that_disagree_about_a_parameter_save_nothing(tmp_path: Path) -> None:
    other = Fragment("norm.weight", (9,), WHOLE, 0, {"weight": torch.zeros(9)}, torch.tensor(4.0))
    with pytest.raises(ValueError, match=r"'norm\.weight' is \(9,\) on rank 1, \(10,\) on one before it"):
        save_ranks(tmp_path, [part_of("norm.weight", 0, 1), [other]])


def test_copies_count_once(tmp_path: Path) -> None:
    """Seven of ten elements, most of them three times."""
    copies = [part_of("norm.weight", 0, 1, [(0, 5)]), part_of("norm.weight", 0, 1, [(0, 5), (2, 7)])]
    reader = CheckpointReader(save_ranks(tmp_path, copies))
    assert torch.equal(reader.read("ema", "norm.weight", WHOLE, 0, 7), values("ema", "norm.weight")[:7])
    with pytest.raises(CheckpointError, match="7 of 10 elements"):
        reader.read("ema", "norm.weight", WHOLE, 0, 10)


def test_copies_of_parts_count_once(tmp_path: Path) -> None:
    half = part_of("down.weight", 0, 2)
    reader = CheckpointReader(save_ranks(tmp_path, [half, half, part_of("down.weight", 1, 4)]))
    with pytest.raises(CheckpointError, match="240 of 480 elements"):
        reader.read("ema", "down.weight", WHOLE, 0, 480)
    expected = shard_of("down.weight", 1, 4).take(values("ema", "down.weight")).flatten()
    assert torch.equal(reader.read("ema", "down.weight", shard_of("down.weight", 1, 4), 0, 120), expected)


def test_a_part_that_nobody_saved_is_told(tmp_path: Path) -> None:
    reader = CheckpointReader(save_ranks(tmp_path, [part_of("qkv.weight", 0, 2)]))
    with pytest.raises(CheckpointError, match=r"'qkv\.weight' is not there in whole \(360 of 720 elements"):
        reader.whole("ema")
    with pytest.raises(CheckpointError, match=r"0 of 360 elements"):
        reader.read("ema", "qkv.weight", shard_of("qkv.weight", 1, 2), 0, 360)


def test_states_of_parts_are_filled(tp2: CheckpointReader) -> None:
    live = part_of("qkv.weight", 2, 4, [(0, 77), (77, 180)])
    expected = {id(fragment): {s: v.clone() for s, v in fragment.states.items()} for fragment in live}
    for fragment in live:
        for tensor in fragment.states.values():
            tensor.zero_()
        fragment.steps.zero_()
        tp2.fill(fragment)
        assert all(torch.equal(tensor, expected[id(fragment)][s]) for s, tensor in fragment.states.items())
        assert float(fragment.steps) == 4
    other = Fragment("qkv.weight", (72, 11), WHOLE, 0, {"weight": torch.zeros(5)}, torch.tensor(0.0))
    with pytest.raises(CheckpointError, match=r"'qkv\.weight' is \(72, 10\) in the checkpoint, \(72, 11\) in this run"):
        tp2.fill(other)


def test_local_parameters_are_filled(tp2: CheckpointReader) -> None:
    def local(index: int) -> Iterator[tuple[str, torch.nn.Parameter, Shard]]:
        for name in ("qkv.weight", "down.weight", "norm.weight"):
            shard = shard_of(name, index, 3)
            yield name, torch.nn.Parameter(torch.zeros(shard.local_shape(PARAMETERS[name][0]))), shard

    for index in range(3):
        parameters = list(local(index))
        tp2.fill_parameters(parameters)
        for name, parameter, shard in parameters:
            assert torch.equal(parameter, shard.take(values("weight", name)))


def test_a_checkpoint_without_shards_is_of_whole_parameters(tmp_path: Path) -> None:
    """Manifests of format 1 know no shards."""
    folder = save_tp(tmp_path, 1, pieces=2)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("digest", "progress", "validation_loss", "stage_end"):
        del manifest[key]
    for file in manifest["files"]:
        for fragment in file["fragments"]:
            del fragment["shard"]
    path.write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(DamagedError, match=r"manifest\.json: damaged \(files\.0\.fragments\.0\.shard: it is missing\)"):
        CheckpointReader(folder)
    path.write_text(json.dumps(manifest | {"format": 1}))
    reader = CheckpointReader(folder)
    for name in PARAMETERS:
        assert torch.equal(reader.whole("ema")[name], values("ema", name))
        shard = shard_of(name, 1, 2)
        part = shard.take(values("ema", name)).flatten()
        assert torch.equal(reader.read("ema", name, shard, 0, part.numel()), part)


def test_a_shard_that_does_not_fit_its_parameter_is_told(tmp_path: Path) -> None:
    manifest = json.loads((save_tp(tmp_path, 2) / "manifest.json").read_text())
    text = json.dumps({key: value for key, value in manifest.items() if key != "digest"} | {"format": 2})
    for old, new in (('"count": 2', '"count": 5'), ('"blocks": 3', '"blocks": 0'), ('"dim": 1', '"dim": 2')):
        assert old in text
        with pytest.raises(DamagedError, match=r"here: damaged .*Shard\(.*which is \("):
            parse_manifest(text.replace(old, new), "here")


def test_a_changed_manifest_is_told(tmp_path: Path) -> None:
    path = save_tp(tmp_path, 2) / "manifest.json"
    text = path.read_text()
    assert read_manifest(path.parent).step == 4
    for old, new in (('"step": 4', '"step": 5'), ('"start": 0', '"start": 1'), ("name: x", "name: y")):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DamagedError, match="its text is not what was written"):
            read_manifest(path.parent)


def test_only_files_that_are_read_from_are_opened(tmp_path: Path) -> None:
    folder = save_tp(tmp_path, 2, pieces=2)
    (folder / "fragments_00003.safetensors").unlink()  # second half of the second part
    reader = CheckpointReader(folder)
    first = shard_of("up.weight", 0, 2)
    expected = first.take(values("ema", "up.weight")).flatten()
    assert torch.equal(reader.read("ema", "up.weight", first, 0, 240), expected)
    for read in (reader.verify, lambda: reader.whole("ema")):
        with pytest.raises(CheckpointError, match=r"fragments_00003\.safetensors: cannot be read"):
            read()


@pytest.mark.parametrize(("asked", "expected"), [(2, 2), (1, 2), (3, 2)])
def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, expected: int) -> None:
    reader = CheckpointReader(save_tp(tmp_path, 2))
    hashed: list[Path] = []
    digest = read_module.file_digest
    monkeypatch.setattr(read_module, "file_digest", lambda path: (hashed.append(path), digest(path))[1])
    for name in PARAMETERS:
        for index in range(asked):
            part = shard_of(name, index, asked)
            reader.read("ema", name, part, 0, math.prod(part.local_shape(PARAMETERS[name][0])))
    assert len(hashed) == len(set(hashed)) == expected


@pytest.mark.parametrize("asked", [shard_of("down.weight", 0, 1), shard_of("down.weight", 0, 2)])
def test_only_the_fragments_that_are_needed_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Shard
) -> None:
    """Of 120 fragments of each of four parts, those near a short range: else many ranges would take quadratic time."""
    parts = [part_of("down.weight", index, 4, [(i, i + 1) for i in range(120)]) for index in range(4)]
    reader = CheckpointReader(save_ranks(tmp_path, parts))
    looked_at: list[FragmentEntry] = []
    over = read_module._Pieces.over

    def counted(self: read_module._Pieces, begin: int, end: int) -> Iterator[tuple[str, FragmentEntry]]:
        for file, entry in over(self, begin, end):
            looked_at.append(entry)
            yield file, entry

    monkeypatch.setattr(read_module._Pieces, "over", counted)
    expected = asked.take(values("ema", "down.weight")).flatten()
    for start in (1, 110, 230):
        looked_at.clear()
        assert torch.equal(reader.read("ema", "down.weight", asked, start, 6), expected[start : start + 6])
        assert 6 <= len(looked_at) <= 4 * 12  # a unit of 12 in one or two parts, as a unit and as elements


def test_the_same_part_is_copied_and_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CheckpointReader(save_tp(tmp_path, 2))
    monkeypatch.setattr(CheckpointReader, "_map", lambda *_: pytest.fail("mapped"))
    for name in PARAMETERS:
        shard = shard_of(name, 1, 2)
        expected = shard.take(values("ema", name)).flatten()
        assert torch.equal(reader.read("ema", name, shard, 1, 8), expected[1:9])
    for whole in (WHOLE, Shard(1, 1, 0, 1)):
        assert torch.equal(reader.read("ema", "norm.weight", whole, 0, 10), values("ema", "norm.weight"))
