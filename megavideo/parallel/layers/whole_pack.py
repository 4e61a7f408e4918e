"""What the ranks have of a pack's tokens, brought together on each of them.

Shape legend: N tokens of the pack, n own tokens.
"""

from __future__ import annotations

import torch

from megavideo.parallel.layers.collectives import gather
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh


def whole_pack(own: torch.Tensor, mesh: ProcessMesh, groups: Groups) -> torch.Tensor:
    """Values [n, ...] of own tokens to those [N, ...] of all, on every rank that shares the pack's tokens.

    Each rank may use any of them: gradients are summed back to the owner's. Ranks that hold the same tokens (tp without
    sp) make the same use of them, and nothing passes between them.
    """
    # the runs lie tp fastest, then ulysses, then ring: `ProcessMesh.own_tokens`
    if mesh.sp:
        own = gather(own, groups.tp)
    if mesh.ulysses > 1:
        own = gather(own, groups.ulysses)
    return gather(own, groups.ring) if mesh.ring > 1 else own
