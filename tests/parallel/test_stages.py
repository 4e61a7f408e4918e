"""How blocks are given to pipeline stages."""

from __future__ import annotations

import pytest

from megavideo.config.layout import stage_parts


@pytest.mark.parametrize(("blocks", "stages"), [(4, 2), (4, 4), (30, 4), (40, 8), (7, 3), (5, 2), (48, 16)])
def test_stages_hold_every_block_once_in_order_and_evenly(blocks: int, stages: int) -> None:
    parts = stage_parts(blocks, stages)
    assert [block for part in parts for block in part] == list(range(blocks))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1 and min(lengths) >= 1
    if blocks % stages and stages > 2:
        # the embedder and the head lie on the outer stages, which get no more than the others
        assert lengths[0] == min(lengths) or lengths[-1] == min(lengths)
