"""Which parameters Muon trains, and of how many matrices each consists."""

from __future__ import annotations

import re

# Layers of a block by their name there, with the number of equal matrices that are stacked in their weight along its
# first dim. Queries, keys and values act on their own, and so does each of the six modulations: orthogonalised
# together, the share of each in the update would depend on the others.
_STACKED = {
    "self_attention.qkv": 3,
    "self_attention.out": 1,
    "cross_attention.q": 1,
    "cross_attention.kv": 2,
    "cross_attention.image_kv": 2,
    "cross_attention.out": 1,
    "ffn.up": 1,
    "ffn.down": 1,
    "modulation": 6,
}
_WEIGHT = re.compile(r"(?:^|\.)blocks\.\d+\.(.+)\.weight$")


def num_matrices(name: str) -> int:
    """Matrices in a parameter that Muon trains; 0 for all others.

    `name` may have a wrapper's parts before it. Hidden matrices of the blocks alone are trained by Muon: embedders, the
    head, biases, norms and tables do not map a hidden space to another one, and keep AdamW (Jordan et al. 2024).
    """
    found = _WEIGHT.search(name)
    return 0 if found is None else _STACKED.get(found[1], 0)
