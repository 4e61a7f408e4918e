"""Entry point: words in, exit status out.

0 success; 1 a defect, with its traceback, or a check that failed, with its report; 2 a fault of input or settings, as
one message; 75 a run that stopped when it was asked to, or a store that stayed out of reach: the same command goes on;
76 a run that hung; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

from megavideo import __version__
from megavideo.cli.arguments import Arguments, parse_arguments, split_verb
from megavideo.cli.help import general_help, verb_help
from megavideo.cli.output import (
    hide_secrets,
    launched_as,
    leads,
    secrets_hidden,
    stdout_kept_clean,
    tell,
    to_json,
)
from megavideo.cli.verb import Verb
from megavideo.cli.verb_table import find_verb, verb_names
from megavideo.config.names import setting_names
from megavideo.errors import ConfigError, MegavideoError, StopRequested

INTERRUPTED = 130


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line `words` and return the exit status; without them run, and end, the process itself."""
    if words is not None:
        with secrets_hidden(words):
            return _guarded(words)
    hide_secrets(sys.argv[1:])  # to the end of the process, as what it prints of a defect comes last
    status = _guarded(sys.argv[1:])
    if "torch.distributed" in sys.modules:
        from megavideo.parallel.processes.distributed import leave

        leave(status)
    return status


def _guarded(given: Sequence[str]) -> int:
    as_json = "--json" in given
    try:
        return _dispatch(given)
    except MegavideoError as error:
        kind = "stopped" if isinstance(error, StopRequested) else "error"
        print(f"{kind}: {error}", file=sys.stderr)
        if as_json and _reports(given):
            tell(to_json({"error": _error_object(error)}))
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _reports(given: Sequence[str]) -> bool:
    """Whether this process is the one that tells of an error: rank 0 of a distributed verb, every one of others."""
    name, _ = split_verb(given)
    alone = name in verb_names() and not find_verb(name).distributed
    return alone or leads(os.environ)


def _dispatch(given: Sequence[str]) -> int:
    name, words = split_verb(given)
    if name is None or name.startswith("-"):
        return _without_verb(given)
    verb = find_verb(name)
    arguments = parse_arguments(words, verb.options, verb.words, setting_names(verb.schema))
    if "help" in arguments.switches:
        tell(verb_help(verb))
        return 0
    if "version" in arguments.switches:
        raise ConfigError("--version", None, "takes no verb", "run `megavideo --version`")
    return _run(verb, arguments)


def _without_verb(given: Sequence[str]) -> int:
    switches = parse_arguments(given).switches
    if "version" in switches:
        tell(to_json({"version": __version__}) if "json" in switches else f"megavideo {__version__}")
        return 0
    if "help" in switches:
        tell(general_help({name: find_verb(name).summary for name in verb_names()}))
        return 0
    legal = ", ".join(verb_names())
    raise ConfigError("verb", None, "is required", f"run `megavideo VERB key=value ...` with one of {legal}, or --help")


def _run(verb: Verb, arguments: Arguments) -> int:
    # Imported here, so that --version and a mistyped verb answer at once.
    from megavideo.config.load import load
    from megavideo.observe.log import configure_logging

    rank, num_processes = launched_as(os.environ) if verb.distributed else (0, 1)
    configure_logging(rank, num_processes, logging.DEBUG if "verbose" in arguments.switches else logging.INFO)
    with stdout_kept_clean():
        cfg = load(verb.schema, verb.primary, arguments.overrides)
        report = verb.run(cfg, arguments.texts)
    if rank == 0:
        tell(to_json(_report_object(report)) if "json" in arguments.switches else verb.describe(report))
    return 1 if verb.failed is not None and verb.failed(report) else 0


def _report_object(report: Any) -> Mapping[str, Any]:
    if dataclasses.is_dataclass(report):
        return dataclasses.asdict(cast(Any, report))
    return dict(report or {})


def _error_object(error: MegavideoError) -> dict[str, Any]:
    content: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, ConfigError):
        content |= {"field": error.field, "value": error.value, "rule": error.rule, "remedy": error.remedy}
    return content
