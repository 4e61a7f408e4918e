"""The run that is to be started: its settings for each stage, held to the rules for the cluster's number of ranks."""

from __future__ import annotations

from dataclasses import replace

from megavideo.config.curriculum import Stage, stages_of
from megavideo.config.layout import full_layout
from megavideo.config.load import load
from megavideo.config.rules import check
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError
from megavideo.launch.directives import processes

_SOME_DATA = "data.uri=s3://bucket/latents"  # where the data is, jobs are told when they are submitted


def load_stages(cfg: SlurmGenRun) -> tuple[Stage, ...]:
    """Every stage of the run, with the layout in full: `dp` is what the cluster's ranks leave to it.

    Raises ConfigError naming the stage and the setting for one that the run's rules refuse, or that the ranks of the
    cluster do not fit.
    """
    words = [f"run={cfg.run}", f"curriculum={cfg.curriculum}", *cfg.words]
    given = any(word.startswith("data.uri=") for word in cfg.words)
    try:
        config = load(TrainRun, "train", words if given else [*words, _SOME_DATA])
        return tuple(_fitted(stage, processes(cfg.cluster)) for stage in stages_of(config))
    except ConfigError as error:
        if error.field in ("run", "curriculum"):
            raise
        remedy = f"{error.remedy}; a setting of the run is said here as words=['KEY=VALUE']"
        raise ConfigError(error.field, error.value, error.rule, remedy) from error


def _fitted(stage: Stage, ranks: int) -> Stage:
    try:
        config = replace(stage.config, layout=full_layout(stage.config.layout, ranks))
        check(config)
    except ConfigError as error:
        place = f"in stage {stage.name} on {ranks} ranks" if stage.name else f"on {ranks} ranks"
        raise ConfigError(error.field, error.value, f"{place}: {error.rule}", error.remedy) from error
    return replace(stage, config=config)
