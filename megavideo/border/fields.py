"""Types of fields that come from outside, for dataclasses that `parse_json` makes."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

LARGEST = 1e300  # no quantity of ours comes near; what is not finite lies beyond it

Count = Annotated[int, Interval(ge=0, le=2**63 - 1)]
Size = Annotated[int, Interval(ge=1, le=999_999_999)]  # of a picture, a latent or a patch, along one axis
Finite = Annotated[float, Interval(ge=-LARGEST, le=LARGEST)]
NotNegative = Annotated[float, Interval(ge=0.0, le=LARGEST)]
Positive = Annotated[float, Interval(gt=0.0, le=LARGEST)]
