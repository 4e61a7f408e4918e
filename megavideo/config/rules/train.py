"""Cross-field rules of a run: its name, its layout, and where numbers go."""

from __future__ import annotations

from megavideo.config.layout import parse_layout
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def name_is_a_folder_name(cfg: TrainRun) -> None:
    """The run folder is `output/name`."""
    if "/" in cfg.name or "\\" in cfg.name or cfg.name in (".", ".."):
        remedy = "take a plain name, and put the folder into output"
        raise ConfigError("name", cfg.name, "must be the name of a folder, not a path", remedy)


def layout_is_data_parallel(cfg: TrainRun) -> None:
    """Training is data-parallel in this version, with ZeRO stage 0 or 1."""
    layout = parse_layout(cfg.layout)
    legal = "take zero0, zero1, dpN-zero0 or dpN-zero1"
    for axis, degree in (("tp", layout.tp), ("cp", layout.cp), ("pp", layout.pp)):
        if degree > 1:
            raise ConfigError("layout", cfg.layout, f"{axis} must be 1 in this version", legal)
    if layout.zero > 1:
        raise ConfigError("layout", cfg.layout, "zero must be 0 or 1 in this version", legal)


def packs_divide_by_ranks(cfg: TrainRun) -> None:
    """Every data-parallel rank takes the same number of packs of a step."""
    dp = parse_layout(cfg.layout).dp
    if dp is not None and cfg.train.packs_per_step % dp:
        above = -(-cfg.train.packs_per_step // dp) * dp
        rule = f"must divide by dp={dp} of layout={cfg.layout!r}"
        raise ConfigError("train.packs_per_step", cfg.train.packs_per_step, rule, f"take train.packs_per_step={above}")


def bf16_keeps_fp32_weights(cfg: TrainRun) -> None:
    """In bf16 the weights that the optimizer updates are fp32 copies, which only ZeRO's partitions hold."""
    if cfg.train.precision == "bf16" and parse_layout(cfg.layout).zero == 0:
        rule = "has no fp32 weights to update, which train.precision=bf16 needs"
        remedy = "take zero1 in place of zero0 (with one process it costs nothing), or train.precision=fp32"
        raise ConfigError("layout", cfg.layout, rule, remedy)


def project_belongs_to_wandb(cfg: TrainRun) -> None:
    """A Weights & Biases project is named only where Weights & Biases is on."""
    if cfg.observe.wandb_project is not None and not cfg.observe.wandb:
        rule = "has no effect with observe.wandb=false"
        raise ConfigError(
            "observe.wandb_project", cfg.observe.wandb_project, rule, "add observe.wandb=true, or drop it"
        )


LOOP_RULES = (
    name_is_a_folder_name,
    layout_is_data_parallel,
    packs_divide_by_ranks,
    bf16_keeps_fp32_weights,
    project_belongs_to_wandb,
)
