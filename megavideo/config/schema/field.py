"""Fields of the configuration schema: a default, a legal range and a remedy kept beside each other."""

from __future__ import annotations

import dataclasses
from typing import Any


def setting(
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    remedy: str | None = None,
) -> Any:
    """A dataclass field with a legal range.

    `minimum` and `maximum` are inclusive, `above` is an exclusive lower bound. Without a default the field is
    required. `remedy` is what the error tells the user to do.
    """
    metadata = {"minimum": minimum, "maximum": maximum, "above": above, "remedy": remedy}
    return dataclasses.field(default=default, metadata=metadata)
