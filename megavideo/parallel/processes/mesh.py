"""The process mesh: who does what. Pure arithmetic, tested without processes.

Ranks run tp fastest, then cp, then dp, then pp: DeepSpeed's topology, whose data axis holds dp x cp. Inside cp, the
degrees of a 2D context parallel run ulysses fastest, then ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.layout import Layout, ulysses_degree
from megavideo.errors import TopologyError

Axis = Literal["tp", "ulysses", "ring", "dp", "pp"]
AXES: tuple[Axis, ...] = ("tp", "ulysses", "ring", "dp", "pp")  # fastest first


@dataclass(frozen=True)
class ProcessMesh:
    """Sizes of the axes and this process's place. Rank to coordinates and back are pure functions."""

    rank: int
    tp: int
    ulysses: int
    ring: int
    dp: int
    pp: int
    sp: bool = False

    @classmethod
    def of(cls, layout: Layout, heads: int, rank: int, world_size: int) -> ProcessMesh:
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
        ulysses = ulysses_degree(layout, heads)
        return cls(rank, layout.tp, ulysses, layout.cp // ulysses, dp, layout.pp, layout.sp)

    @property
    def cp(self) -> int:
        """Degree of context parallel: ulysses x ring."""
        return self.ulysses * self.ring

    def sizes(self) -> dict[Axis, int]:
        """Sizes of the axes, fastest first."""
        return {"tp": self.tp, "ulysses": self.ulysses, "ring": self.ring, "dp": self.dp, "pp": self.pp}

    def place(self, rank: int | None = None) -> dict[Axis, int]:
        """Coordinates of a rank, of this process's where none is given."""
        rest, found = self.rank if rank is None else rank, {}
        for axis, size in self.sizes().items():
            rest, found[axis] = divmod(rest, size)
        return found

    def rank_at(self, place: dict[Axis, int]) -> int:
        """The rank at coordinates."""
        rank = 0
        for axis, size in reversed(self.sizes().items()):
            rank = rank * size + place[axis]
        return rank

    def groups(self, *axes: Axis) -> list[tuple[int, ...]]:
        """All sets of ranks that differ along `axes` only, each ascending; together they hold every rank once."""
        sets: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            place = self.place(rank)
            sets.setdefault(tuple(place[axis] for axis in AXES if axis not in axes), []).append(rank)
        return [tuple(ranks) for ranks in sets.values()]

    def peers(self, *axes: Axis) -> tuple[int, ...]:
        """The set of `groups` that holds this process."""
        return next(ranks for ranks in self.groups(*axes) if self.rank in ranks)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.tp * self.cp * self.dp * self.pp

    @property
    def tp_rank(self) -> int:
        """Which shard of the parameters and heads this process holds."""
        return self.place()["tp"]

    @property
    def cp_rank(self) -> int:
        """Which run of a pack's tokens this process holds."""
        place = self.place()
        return place["ring"] * self.ulysses + place["ulysses"]

    @property
    def dp_rank(self) -> int:
        """Which share of a step's packs this process trains on."""
        return self.place()["dp"]

    @property
    def pp_rank(self) -> int:
        """Which pipeline stage this process holds."""
        return self.place()["pp"]

    @property
    def loss_replicas(self) -> int:
        """Ranks over which the engine averages gradients: dp x cp."""
        return self.dp * self.cp

    @property
    def loss_copies(self) -> int:
        """How many processes count each token's error: the tp ranks, unless they share the tokens out."""
        return 1 if self.sp else self.tp

    def attended_tokens(self, num_tokens: int) -> slice:
        """This process's run of a pack between a column and a row layer: one of cp equal runs."""
        run = num_tokens // self.cp
        return slice(self.cp_rank * run, (self.cp_rank + 1) * run)

    def own_text(self, num_tokens: int) -> slice:
        """This process's share of a pack's text: one of cp equal runs, of which the last may reach past the end."""
        run = -(-num_tokens // self.cp)
        return slice(self.cp_rank * run, (self.cp_rank + 1) * run)

    def own_tokens(self, num_tokens: int) -> slice:
        """This process's run of a pack in the residual stream: under sp, one of tp equal parts of its cp run."""
        attended = self.attended_tokens(num_tokens)
        if not self.sp:
            return attended
        part = (attended.stop - attended.start) // self.tp
        return slice(attended.start + self.tp_rank * part, attended.start + (self.tp_rank + 1) * part)
