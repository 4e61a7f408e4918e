"""Rules of low-rank adapters: what they need, and what has no effect without them."""

from __future__ import annotations

from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def adapters_are_on_where_they_are_set(cfg: TrainRun) -> None:
    """How adapters are made matters only where there are any."""
    if cfg.lora.rank is None:
        rule, remedy = "has no effect with lora.rank=null", "add lora.rank=16, or drop it"
        refuse_set("lora", cfg.lora, ("alpha", "targets", "base"), rule, remedy)


def adapters_have_targets_and_a_base(cfg: TrainRun) -> None:
    """An adapter stands beside layers whose weights come from somewhere."""
    if cfg.lora.rank is None:
        return
    rule = f"lora.rank={cfg.lora.rank} needs it"
    if not cfg.lora.targets:
        remedy = "take the group lora=blocks, or name layers, as lora.targets=['blocks.*.self_attention.*']"
        raise ConfigError("lora.targets", [], rule, remedy)
    if cfg.lora.base is None:
        raise ConfigError("lora.base", None, rule, "give a run folder or checkpoint, as lora.base=runs/small")


LORA_RULES = (adapters_are_on_where_they_are_set, adapters_have_targets_and_a_base)
