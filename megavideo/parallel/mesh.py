"""The process mesh: who does what. Pure arithmetic; the only place where process groups are made.

Ranks run tp fastest, then cp, then dp, then pp: DeepSpeed's topology, whose data axis holds dp x cp.
"""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.layout import Layout
from megavideo.errors import TopologyError


@dataclass(frozen=True)
class ProcessMesh:
    """Sizes of the axes and this process's place. Rank to coordinates and back are pure functions."""

    rank: int
    tp: int
    cp: int
    dp: int
    pp: int

    @classmethod
    def of(cls, layout: Layout, rank: int, world_size: int) -> ProcessMesh:
        """The mesh that `world_size` processes form under a layout, whose dp follows from them where it is left open.

        Raises TopologyError where they do not divide.
        """
        model_size = layout.tp * layout.cp * layout.pp
        dp = layout.dp if layout.dp is not None else max(1, world_size // model_size)
        if dp * model_size != world_size:
            raise TopologyError(
                f"layout {layout.format()} needs {dp * model_size} processes (tp {layout.tp} x cp {layout.cp} x "
                f"dp {dp} x pp {layout.pp}), and {world_size} were started. Remedy: start that many, or change layout="
            )
        return cls(rank, layout.tp, layout.cp, dp, layout.pp)

    @property
    def coordinates(self) -> tuple[int, int, int, int]:
        """(tp, cp, dp, pp) ranks of this process."""
        rest, tp = divmod(self.rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return tp, cp, dp, pp

    @property
    def dp_rank(self) -> int:
        """Which share of a step's packs this process trains on."""
        return self.coordinates[2]

    @property
    def loss_replicas(self) -> int:
        """Ranks over which the engine averages gradients: dp x cp."""
        return self.dp * self.cp
