"""The exception tree: a user's mistake is told from a bug by the type.

Everything below `MegavideoError` is reported by the command line as one clear message, with the exit status that its
kind has; any other exception is a defect of megavideo and keeps its traceback.
"""

from __future__ import annotations

import re

FAULT_STATUS = 2
RETRY_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command, started again, goes on
_LONGEST_VALUE = 400  # characters of a value in a message
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HEAD, _TAIL = 2000, 1500  # characters of a message that may repeat a long name or digest; the remedy stands last
HUNG_STATUS = 76  # nothing moved for `guard.hang_seconds`: started again it goes on, on other nodes than those named


class MegavideoError(Exception):
    """A fault whose cause lies outside the code: input, configuration, storage, numerics or topology."""

    exit_status: int = FAULT_STATUS

    def __init__(self, message: str) -> None:
        # what is quoted may hold anything, and a message is one line of a log
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], message)
        if len(message) > _HEAD + _TAIL + 100:
            left_out = f" ... ({len(message) - _HEAD - _TAIL} characters left out) ... "
            message = message[:_HEAD] + left_out + message[-_TAIL:]
        super().__init__(message)


class ConfigError(MegavideoError):
    """A setting that cannot be used.

    The message names the field, the value, the rule it broke and the change to make.
    """

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        self.remedy = remedy
        shown = repr(value)
        shown = shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}... ({len(shown)} characters)"
        given = field if value is None else f"{field}={shown}"
        super().__init__(f"{given}: {rule}. Remedy: {remedy}")


class DataError(MegavideoError):
    """A file, shard, manifest or sample that cannot be read or used; the message names it and the remedy."""


class StoreUnreachable(DataError):
    """A store that stayed out of reach for as long as it is waited for, or a process that fetches from it and ended.

    It may be back when the command is repeated.
    """

    exit_status = RETRY_STATUS


class ServerUnavailable(DataError):
    """A server that asks of a model are sent to, and that over all attempts stayed out of reach, busy or failing.

    It may be back when the command is repeated.
    """

    exit_status = RETRY_STATUS


class OutputInUse(MegavideoError):
    """An output that another process works on; once that has ended, the same command goes on."""

    exit_status = RETRY_STATUS


class CheckpointError(MegavideoError):
    """A checkpoint that is missing, incomplete, damaged or made for another model."""


class SaveFailed(CheckpointError):
    """Saves that go on failing, as on a full disk; there may be room when the same command is started again."""

    exit_status = RETRY_STATUS


class TopologyError(MegavideoError):
    """A process mesh that the started processes cannot form."""


class RanksMissing(TopologyError):
    """Processes that did not find each other, as after a node is lost or a port is taken: another start may mend it."""

    exit_status = RETRY_STATUS


class NumericsError(MegavideoError):
    """Numbers that make further work pointless, as a loss that stays non-finite."""


class StopRequested(MegavideoError):
    """A run that was asked to end, as by Slurm before its time is over, and is saved: to be started again."""

    exit_status = RETRY_STATUS
