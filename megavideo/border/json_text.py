"""JSON from outside, parsed once into values of a type: a dataclass, or what `typing` can say."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, overload

from megavideo.border.fields import LARGEST
from megavideo.border.files import MOST_BYTES, read_file
from megavideo.border.names import shown
from megavideo.border.refused import Refused

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
_UTF8_MARK = b"\xef\xbb\xbf"
_MOST_PLACES = 8
_MOST_GIVEN = 60
_PLAIN = re.compile(r"[\w.-]+")


@overload
def parse_json(text: bytes | str, kind: type[T]) -> T: ...
@overload
def parse_json(text: bytes | str, kind: Any = ...) -> Any: ...
def parse_json(text: bytes | str, kind: Any = Any) -> Any:
    """The value of a JSON text as `kind`, such as a dataclass, `dict[str, int]` or `Any`.

    Nothing is converted: a number in quotes is no number. Depth is bounded, text is Unicode without lone surrogates,
    and a mark of the byte order is passed over. Fields that `kind` does not have are left out, unless it says
    `__pydantic_config__ = {"extra": "forbid"}`. Raises Refused with the field and the reason.
    """
    from pydantic import ValidationError

    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        return _adapter(kind).validate_json(text.removeprefix(_UTF8_MARK), strict=True)
    except ValidationError as error:
        raise Refused(_reason(error)) from None


@overload
def read_json(path: str | os.PathLike[str], kind: type[T], most_bytes: int = ...) -> T: ...
@overload
def read_json(path: str | os.PathLike[str], kind: Any = ..., most_bytes: int = ...) -> Any: ...
def read_json(path: str | os.PathLike[str], kind: Any = Any, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a regular file of JSON; raises as `parse_json` and `read_file` do."""
    return parse_json(read_file(path, most_bytes), kind)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _reason(error: Any) -> str:
    """The first of what pydantic found deepest, in one line: of a choice of types the one that fits best tells."""
    found = max(error.errors(include_url=False), key=lambda fault: len(fault["loc"]))
    if found["type"] == "json_invalid":
        return f"not valid JSON: {found['ctx']['error']}"
    places = [str(part) for part in found["loc"] if not str(part).startswith("_")]  # types of a choice are told too
    place = ".".join(places[:_MOST_PLACES])
    place = place if not place or _PLAIN.fullmatch(place) else shown(place)
    named = f"{place}: " if place else ""
    if found["type"] == "missing":
        return f"{named}it is missing"
    if found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{named}no such field is known"
    rule = found["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if LARGEST in map(abs, _bounds(found)):
        rule = "should be a finite number"
    given = repr(found["input"])[:_MOST_GIVEN].encode("utf-8", "backslashreplace").decode()
    return f"{named}it is {given}, and {rule}" if rule.startswith("should") else f"{named}{rule}"


def _bounds(found: Any) -> list[float]:
    return [value for name, value in found.get("ctx", {}).items() if name in ("le", "ge", "lt", "gt")]
