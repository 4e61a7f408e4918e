"""Cross-field rules of a run: its name and folder, what is done about spikes, and where numbers go."""

from __future__ import annotations

from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.train import TrainRun
from megavideo.config.schema.vae import TrainVaeRun
from megavideo.errors import ConfigError


def output_is_a_folder(cfg: TrainRun | TrainVaeRun) -> None:
    """Run folders are local, or on a file system that all nodes share."""
    if "://" in cfg.output:
        remedy = "take a folder; checkpoints alone go to a store, by checkpoint.uri of `megavideo train`"
        raise ConfigError("output", cfg.output, "must be a path, not an address", remedy)


def window_belongs_to_spikes(cfg: TrainRun) -> None:
    """Losses are looked back at only to tell a spike."""
    if cfg.guard.spike_factor is None:
        rule, remedy = "has no effect with guard.spike_factor=null", "add guard.spike_factor=3, or drop it"
        refuse_set("guard", cfg.guard, ("spike_window",), rule, remedy)


def name_is_a_folder_name(cfg: TrainRun | TrainVaeRun) -> None:
    """The run folder is `output/name`."""
    if "/" in cfg.name or "\\" in cfg.name or cfg.name in (".", ".."):
        remedy = "take a plain name, and put the folder into output"
        raise ConfigError("name", cfg.name, "must be the name of a folder, not a path", remedy)


def expert_is_of_given_weights(cfg: TrainRun) -> None:
    """Which of two experts a run begins with is asked of weights that are given."""
    if cfg.init_expert is not None and cfg.init_from is None:
        rule = "has no effect without init_from"
        raise ConfigError("init_expert", cfg.init_expert, rule, "add init_from=FOLDER, or drop it")


def project_belongs_to_wandb(cfg: TrainRun) -> None:
    """A Weights & Biases project is named only where Weights & Biases is on."""
    if cfg.observe.wandb_project is not None and not cfg.observe.wandb:
        rule = "has no effect with observe.wandb=false"
        raise ConfigError(
            "observe.wandb_project", cfg.observe.wandb_project, rule, "add observe.wandb=true, or drop it"
        )


LOOP_RULES = (
    name_is_a_folder_name,
    output_is_a_folder,
    window_belongs_to_spikes,
    expert_is_of_given_weights,
    project_belongs_to_wandb,
)
