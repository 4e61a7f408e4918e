"""The check that ranks which train one pack together were given the same one.

Ranks that differ in tp, cp or pp only each make a step's packs by themselves, from files and seeds. Were one of them to
make another pack, as from another copy of the data or other settings, training would go on without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
import xxhash

from megavideo.errors import DataError
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.packs.feed import StepInput
from megavideo.train.packs.noising import TrainBatch

# what is told apart, in the order in which one follows from the other
PARTS = ("samples", "texts", "timesteps", "noise")


def check_same_input(given: StepInput, mesh: ProcessMesh, device: torch.device) -> None:
    """Compare this rank's packs with those of the ranks that train them too; a collective of all processes.

    Raises DataError on every rank, also of the other groups, where any rank differs from the others of its group.
    """
    mine = torch.tensor(input_hashes(given.batches), dtype=torch.int64, device=device)
    everyone = torch.empty(mesh.world_size * len(PARTS), dtype=torch.int64, device=device)
    # over all ranks and not each group by itself: the other groups would wait for one that has raised
    dist.all_gather_into_tensor(everyone, mine)
    hashes = everyone.view(mesh.world_size, len(PARTS)).tolist()
    faults = [fault for ranks in mesh.groups("tp", "ulysses", "ring", "pp") for fault in _faults(ranks, hashes)]
    if faults:
        raise DataError(
            f"step {given.step + 1}: ranks of one tp, cp and pp group must train on the same inputs: "
            f"{'; '.join(faults)}. Remedy: see that every node reads the same dataset and settings with the same "
            "versions of the libraries; the last checkpoint may be from after the fault"
        )


def input_hashes(batches: Sequence[TrainBatch]) -> list[int]:
    """xxh64 of each of PARTS over the packs, as signed 64-bit integers."""
    hashers = {part: xxhash.xxh64() for part in PARTS}
    for batch in batches:
        for part, values in _values(batch).items():
            for value in values:
                hashers[part].update(_raw(value) if isinstance(value, torch.Tensor) else repr(value).encode())
    return [_signed(hasher.intdigest()) for hasher in hashers.values()]


def differing(hashes: Mapping[int, Sequence[int]]) -> dict[int, tuple[str, ...]]:
    """Which ranks of one group differ from what most of them have, and in which of PARTS; in a tie, from the first."""
    rows = [tuple(row) for row in hashes.values()]
    most = max(rows, key=rows.count)  # the first of several that are as many
    return {
        rank: tuple(part for part, mine, theirs in zip(PARTS, row, most, strict=True) if mine != theirs)
        for rank, row in zip(hashes, rows, strict=True)
        if row != most
    }


def _faults(ranks: Sequence[int], hashes: Sequence[Sequence[int]]) -> list[str]:
    found = differing({rank: hashes[rank] for rank in ranks})
    others = ", ".join(str(rank) for rank in ranks if rank not in found)
    return [f"rank {rank} has other {', '.join(parts)} than rank {others}" for rank, parts in found.items()]


def _values(batch: TrainBatch) -> dict[str, tuple[object, ...]]:
    pack = batch.pack
    terms = () if batch.terms is None else batch.terms.tensors()
    given = tuple(tensor for tensor in (pack.given, pack.image) if tensor is not None)
    return {
        "samples": (pack.sample_ids, pack.visits, pack.cu_seqlens, pack.bounds, pack.grid, pack.fps),
        "texts": (pack.cu_seqlens_text, pack.text_bounds, pack.text),
        "timesteps": (pack.timestep,),
        "noise": (pack.tokens, pack.condition_mask, batch.target, batch.weight, *given, *terms),
    }


def _raw(tensor: torch.Tensor) -> memoryview:
    # as bytes, since numpy has no bf16
    return tensor.contiguous().view(torch.uint8).numpy().data


def _signed(digest: int) -> int:
    return digest - (1 << 64) if digest >= 1 << 63 else digest
