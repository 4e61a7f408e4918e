"""What a process of a parity run writes down: losses, norms, and its fragments of gradients and weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megavideo.border.json_text import read_json
from megavideo.border.tensor_file import read_tensors
from megavideo.parallel.layers.sharding import Shard


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + numel) of the flattened `shard` of a parameter, of one kind in one step.

    `kind` is `grad` (unclipped, in every step), or after the last step `weight` or `ema`.
    """

    kind: str
    step: int
    name: str
    shape: tuple[int, ...]
    shard: Shard
    start: int
    values: torch.Tensor


@dataclass(frozen=True)
class Record:
    """One process's account: of each step its loss, its further terms one after another, and its gradient's norm.

    `host_reads` counts what it read of its tensors' values in its steps, as `HostReads.counts` does.
    """

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    pieces: tuple[Piece, ...]
    terms: tuple[float, ...] = ()
    sent_bytes: dict[str, float] | None = None
    saved_bytes: int | None = None
    host_reads: dict[str, int] | None = None

    def write(self, path: Path) -> None:
        """Tensors to `path`, all else beside it."""
        save_file({str(i): piece.values.contiguous() for i, piece in enumerate(self.pieces)}, path)
        rows = [
            {**asdict(piece), "values": None, "shard": asdict(piece.shard), "shape": list(piece.shape)}
            for piece in self.pieces
        ]
        fields = {"losses": self.losses, "grad_norms": self.grad_norms, "pieces": rows, "terms": self.terms,
                  "sent_bytes": self.sent_bytes, "saved_bytes": self.saved_bytes,
                  "host_reads": self.host_reads}  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps(fields))

    @classmethod
    def read(cls, path: Path) -> Record:
        """What `write` wrote."""
        tensors = read_tensors(path)
        value = read_json(path.with_suffix(".json"))
        return cls(
            tuple(value["losses"]),
            tuple(value["grad_norms"]),
            tuple(_pieces(value["pieces"], tensors)),
            tuple(value["terms"]),
            value["sent_bytes"],
            value["saved_bytes"],
            value["host_reads"],
        )


def _pieces(rows: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> Iterator[Piece]:
    for i, row in enumerate(rows):
        shard = Shard(**row["shard"])
        shape = tuple(row["shape"])
        yield Piece(row["kind"], row["step"], row["name"], shape, shard, row["start"], tensors[str(i)])
