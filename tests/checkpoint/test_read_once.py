"""A checkpoint read in its order: each byte of its files once, the same values as the mapped files give, and damage."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import DamagedError, Header
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.rank_part import RankPart, manifest_of
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.read_once import SinglePassReader
from megavideo.checkpoint.snapshot import Snapshot
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE, Shard

SHAPES = {"a": (700, 1000), "b": (33,), "c": (512, 3000)}
RANKS, PIECE = 2, 1 << 18


def saved(folder: Path, dtype: torch.dtype = torch.float32, *, columns: bool = False) -> Path:
    """A checkpoint of two ranks, with two states; `c` is cut by columns where that is asked for."""
    generator = torch.Generator().manual_seed(0)
    place, save, parts = FolderPlace(folder / "checkpoints"), SaveId(1, "test", 0), []
    place.begin(save)
    for rank in range(RANKS):
        fragments = []
        for name, shape in SHAPES.items():
            numel = math.prod(shape)
            begin, end = numel * rank // RANKS, numel * (rank + 1) // RANKS
            shard, begin = (Shard(1, 1, rank, RANKS), 0) if columns and name == "c" else (WHOLE, begin)
            end = numel // RANKS if shard is not WHOLE else end
            states = {s: torch.randn(end - begin, generator=generator).to(dtype) for s in ("weight", "ema")}
            fragments.append(Fragment(name, shape, shard, begin, states, torch.tensor(1.0)))
        state = Snapshot().take(fragments)
        parts.append(RankPart(tuple(place.write(save, rank, state)), 1, state.shapes))
    place.publish(save, manifest_of(Header(1, "dp2", "name: x\n"), parts))
    place.end(save)
    return find_checkpoint(folder)


def pieces(reader: SinglePassReader, names: Any = SHAPES) -> dict[str, torch.Tensor]:
    """All averages, read in pieces into one buffer."""
    found, buffer = {}, torch.empty(PIECE)
    for name in names:
        whole = torch.empty(math.prod(SHAPES[name]))
        for start in range(0, len(whole), PIECE):
            piece = buffer[: min(PIECE, len(whole) - start)]
            reader.read_into("ema", name, start, piece)
            whole[start : start + len(piece)] = piece
        found[name] = whole.view(SHAPES[name])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("names", [list(SHAPES), list(SHAPES)[::-1]])
def test_values_are_those_of_mapped_files(tmp_path: Path, dtype: torch.dtype, columns: bool, names: list[str]) -> None:
    checkpoint = saved(tmp_path, dtype, columns=columns)
    reader = SinglePassReader(checkpoint)
    found = pieces(reader, names)
    expected = CheckpointReader(checkpoint).whole("ema")
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)
    reader.finish()
    assert torch.equal(reader.value("ema", "c", SHAPES["c"]), expected["c"])


def test_each_byte_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved(tmp_path)
    reader = SinglePassReader(checkpoint)
    counts, read = [], os.preadv

    def counted(*given: Any) -> int:
        counts.append(read(*given))
        return counts[-1]

    monkeypatch.setattr("megavideo.checkpoint.hashed_file.os.preadv", counted)
    pieces(reader)
    reader.finish()
    assert sum(counts) == reader.manifest.size_bytes


@pytest.mark.parametrize("at", [0.3, 0.5, 0.999])
def test_a_bit_that_changed_is_told_at_the_end(tmp_path: Path, at: float) -> None:
    """In what was read, in the state that was passed over, and behind all that was read."""
    checkpoint = saved(tmp_path)
    path = checkpoint / "fragments_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[int(at * len(content)) // 4 * 4] ^= 1
    path.write_bytes(content)
    reader = SinglePassReader(checkpoint)
    pieces(reader, ["a", "b"])
    with pytest.raises(DamagedError, match=r"fragments_00001\.safetensors: damaged: its xxh64 is"):
        reader.finish()


def test_what_is_not_finite_in_a_damaged_file_is_its_damage(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    path = checkpoint / "fragments_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-200_000:-199_996] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    reader = SinglePassReader(checkpoint)
    pieces(reader)
    with pytest.raises(DamagedError, match="its xxh64 is"):
        reader.check_finite()
