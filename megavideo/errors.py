"""The exception tree: a user's mistake is told from a bug by the type.

Everything below `MegavideoError` is reported by the command line as one clear message with exit status 2;
any other exception is a defect of megavideo and keeps its traceback.
"""

from __future__ import annotations


class MegavideoError(Exception):
    """A fault whose cause lies outside the code: input, configuration, storage, numerics or topology."""


class ConfigError(MegavideoError):
    """A setting that cannot be used.

    The message names the field, the value, the rule it broke and the change to make.
    """

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        self.remedy = remedy
        given = field if value is None else f"{field}={value!r}"
        super().__init__(f"{given}: {rule}. Remedy: {remedy}")


class DataError(MegavideoError):
    """A file, shard, manifest or sample that cannot be read or used; the message names it and the remedy."""


class CheckpointError(MegavideoError):
    """A checkpoint that is missing, incomplete, damaged or made for another model."""


class TopologyError(MegavideoError):
    """A process mesh that the started processes cannot form."""


class NumericsError(MegavideoError):
    """Numbers that make further work pointless, as a loss that stays non-finite."""
