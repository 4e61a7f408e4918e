"""Cross-field rules of a run: its name, and where numbers go."""

from __future__ import annotations

from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def name_is_a_folder_name(cfg: TrainRun) -> None:
    """The run folder is `output/name`."""
    if "/" in cfg.name or "\\" in cfg.name or cfg.name in (".", ".."):
        remedy = "take a plain name, and put the folder into output"
        raise ConfigError("name", cfg.name, "must be the name of a folder, not a path", remedy)


def project_belongs_to_wandb(cfg: TrainRun) -> None:
    """A Weights & Biases project is named only where Weights & Biases is on."""
    if cfg.observe.wandb_project is not None and not cfg.observe.wandb:
        rule = "has no effect with observe.wandb=false"
        raise ConfigError(
            "observe.wandb_project", cfg.observe.wandb_project, rule, "add observe.wandb=true, or drop it"
        )


LOOP_RULES = (
    name_is_a_folder_name,
    project_belongs_to_wandb,
)
