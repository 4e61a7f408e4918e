"""The table of verbs: what there is, and which one is meant."""

from __future__ import annotations

from importlib import import_module
from keyword import iskeyword

from megavideo.cli.verb import Verb
from megavideo.config.names import nearest
from megavideo.errors import ConfigError


def verb_names() -> tuple[str, ...]:
    """Names of the verbs in the order in which a user meets them.

    Each has a module of `cli/verbs` holding `VERB`, with an underscore where the name has a dash, and one behind it
    where it is a word of Python.
    """
    return (
        "ingest", "caption", "train-vae", "encode", "train", "status", "report", "checkpoint", "lora", "sample",
        "export", "import", "fit", "demo", "parity", "doctor", "preflight", "plan", "slurm-gen",
    )  # fmt: skip


def find_verb(name: str) -> Verb:
    """The verb called `name`. Raises ConfigError naming the nearest where there is none."""
    known = verb_names()
    if name not in known:
        close = nearest(name, known)
        if name in ("help", "version"):
            close = f"--{name}"
        remedy = f"did you mean `megavideo {close}`?" if close else f"take one of {', '.join(known)}"
        raise ConfigError("verb", name, "there is no such command", remedy)
    module = f"{name}_" if iskeyword(name) else name.replace("-", "_")
    verb: Verb = import_module(f"megavideo.cli.verbs.{module}").VERB
    return verb
