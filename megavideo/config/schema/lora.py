"""Settings of low-rank adapters (group `lora`)."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of `rank` beside the linear layers that `targets` name; only they are trained. None: no adapters.

    `targets` are patterns over names of layers, as `blocks.*.ffn.*`, in which `*` stands for anything. An adapter is
    multiplied by `alpha / rank`; `alpha` None is the rank. `base` is a run folder or checkpoint with the weights beside
    which the adapters stand: its averages, where it has any. `init_from` then names adapters that a run begins with.
    """

    rank: int | None = setting(None, minimum=1)
    alpha: float | None = setting(None, above=0.0)
    targets: tuple[str, ...] = ()
    base: str | None = None

    @property
    def scale(self) -> float:
        """What an adapter is multiplied by."""
        return 1.0 if self.rank is None or self.alpha is None else self.alpha / self.rank
