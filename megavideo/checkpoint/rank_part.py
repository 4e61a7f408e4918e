"""What each rank tells of the files that it wrote, and the manifest of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from megavideo.border.fields import Count
from megavideo.border.json_text import parse_json
from megavideo.checkpoint.manifest import FORMAT, FileEntry, Header, Manifest, file_value


@dataclass(frozen=True)
class RankPart:
    """A rank's files (none where it had nothing to save), its count of updates, and its parameters' whole shapes."""

    files: tuple[FileEntry, ...]
    steps: Count
    shapes: dict[str, tuple[Count, ...]]

    def to_json(self) -> str:
        """The text of its note."""
        files = [file_value(file) for file in self.files]
        return json.dumps({"files": files, "steps": self.steps, "shapes": self.shapes})

    @classmethod
    def from_json(cls, text: str) -> RankPart:
        """The part back. Raises Refused where the text is no part's."""
        return parse_json(text, cls)


def manifest_of(header: Header, parts: Sequence[RankPart]) -> Manifest:
    """The manifest of a checkpoint of these parts, by rank. Raises ValueError where ranks disagree on a parameter."""
    shapes: dict[str, tuple[int, ...]] = {}
    for rank, part in enumerate(parts):
        for name, shape in part.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(f"parameter {name!r} is {shape} on rank {rank}, {shapes[name]} on one before it")
    return Manifest(
        FORMAT,
        header.step,
        max(part.steps for part in parts),
        header.layout,
        shapes,
        header.config,
        tuple(file for part in parts for file in part.files),
        header.progress,
        header.validation_loss,
        header.stage_end,
        header.base,
    )
