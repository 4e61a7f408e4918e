"""Settings of what a run does about faults (group `guard`)."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What is done about bad steps, hangs and slow ranks.

    A step whose loss or gradient is not finite is skipped, and so is one whose loss exceeds `spike_factor` times the
    median of the last `spike_window` losses (null: none is). After `max_skipped` skipped steps in a row the run goes
    back to the checkpoint before the first of them and passes over the data of those steps; after `max_rollbacks` of
    that it ends. `exclude` is a text file of sample ids, one a line, that are not trained on. A rank that makes no step
    for `hang_seconds` prints its stacks and ends (null: never). Every `straggler_every` steps the time that each rank
    worked is compared; one that takes more than `straggler_factor` times the median is named.
    """

    max_skipped: int = setting(5, minimum=1)
    max_rollbacks: int = setting(3, minimum=0)
    spike_factor: float | None = setting(None, above=1.0)
    spike_window: int = setting(64, minimum=8)
    exclude: str | None = None
    hang_seconds: float | None = setting(1800.0, above=0.0)
    straggler_every: int = setting(50, minimum=1)
    straggler_factor: float = setting(1.3, above=1.0)
